"""What the commands share: options, the library's errors as one line, examples."""

from __future__ import annotations

from typing import Any

import click

from context_pred.errors import ContextPredError

MODEL_HELP = "A name of the zoo, a path, or hf-hub:OWNER/NAME@REVISION."


class Failure(click.ClickException):
    """One of the library's errors, to be shown as one line on stderr; exit status 2, as for a wrong option."""

    exit_code = 2


class Group(click.Group):
    """A click group that shows the library's errors without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; any ContextPredError becomes a Failure."""
        try:
            return super().invoke(ctx)
        except ContextPredError as error:
            raise Failure(" ".join(str(error).split())) from error


def example(line: str) -> str:
    """Return a command's closing help text: one line to copy."""
    return f"\b\nExample:\n  {line}"


def pairs(settings: tuple[str, ...], accepted: str, as_in: str) -> dict[str, str]:
    """Read what --set was given, once or more, as {key: value}."""
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: accepted is {accepted}, as in {as_in}.")
        parsed[key.strip()] = value
    return parsed


def default_model() -> str:
    """Return the plain name of the model that ships with the library."""
    from context_pred.zoo.registry import default_name

    name = default_name()
    if name is None:
        raise click.UsageError("No model ships with this installation; name one with --model.")
    return name


model_option = click.option(
    "--model", default=default_model, show_default="the shipped one", metavar="NAME", help=MODEL_HELP
)
batch_option = click.option("--batch-size", default=32, show_default=True, metavar="N", help="Images at once.")
workers_option = click.option(
    "--workers",
    type=int,
    default=None,
    metavar="N",
    help="Threads that open images.  [default: 2 beside a CPU, up to 16 beside a GPU]",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …; auto takes what there is."
)
progress_option = click.option("--progress/--no-progress", default=True, help="Show a progress bar on stderr.")
cache_option = click.option("--cache-dir", default=None, metavar="DIR", help="Another cache than huggingface-hub's.")
revision_option = click.option("--revision", default=None, metavar="COMMIT", help="Of an hf-hub: model.")
