"""Masked motion pretraining: track store and video list -> clips and targets -> mask -> model -> loss."""
