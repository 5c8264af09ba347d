"""Pretraining: from a folder of unlabelled images and a recipe to a model."""
