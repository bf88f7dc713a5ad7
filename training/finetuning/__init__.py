"""Fine-tuning and probing: a pretrained encoder and labelled videos in, accuracies out."""
