"""``python -m context_pred.cli``, as torchrun wants it."""

from context_pred.cli import main

if __name__ == "__main__":
    main()
