# What is particular to your site and account. Every script here sources this file, once for each start of a job; what is
# exported reaches all of the job's nodes. Edit it, or leave it alone and set the variables where you submit. A value that
# is set already stays.

# Modules and environments, if the commands need them:
# module load cuda
# source "$HOME/miniforge3/bin/activate" motion-targets

# Folder of the project's commands, ray and torchrun, where they are not on the PATH of the compute nodes.
: "${MOTION_TARGETS_BIN:=}"

# A disk of the node's own, for sockets and small files (Ray's session); a folder of each job's own is made in it and
# removed. At most 25 characters, for a socket's path may not be long.
: "${MOTION_TARGETS_SCRATCH:=/tmp}"

# So often is a job put back into the queue; then it ends with status 75 and can be submitted again.
: "${MOTION_TARGETS_MAX_REQUEUES:=100}"

# One thread for each process: extraction runs one process for each core. For training on a CPU give more.
: "${OMP_NUM_THREADS:=1}"
export OMP_NUM_THREADS

# Several nodes that have more than one network: the one that PyTorch is to take.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
