"""In place of the `cotracker` package, with the interface that we use of it and a network that needs no training.

It follows points by the correlation of their surroundings, so that what is built around the network can be tested from
end to end on machines without the package: an axis mixed up, a window misplaced, and the tracks leave their points.
"""
