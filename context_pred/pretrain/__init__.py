"""Pretraining: from a folder of unlabelled images and a recipe to a model.

On one machine, with one GPU or none:

    context-pred pretrain photos/ --recipe resnet18_1xb64-coslr-300k --out run

On one node with eight GPUs, and on two nodes (the same command on each, ``photos/`` and ``run`` on a shared disk):

    torchrun --nproc-per-node 8 --no-python context-pred pretrain photos/ --recipe resnet50_8xb64-steplr-70e --out run
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        --no-python context-pred pretrain photos/ --recipe resnet50_8xb64-steplr-70e --out run

The global batch is the recipe's whatever the hardware, and so is every draw: which image, which square, which boxes.
"""

from .recipe import Recipe, list_recipes, read_recipe
from .run import Pretrained, run

__all__ = ["Pretrained", "Recipe", "list_recipes", "read_recipe", "run"]
