"""Third tab: the pretext task as a game."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

import gradio as gr
import torch

from context_pred.errors import ContextPredError, ImageError

from . import pieces
from .album import Album
from .guess import Question, Score, ask, can_guess
from .parts import board_piece, in_turn, piece, sent, upload
from .uploads import Limits, Photo, open_photo, open_upload

LEAD = (
    "This is what the model learned from: given the patch in the middle and one of its neighbours, say where the "
    "neighbour lies. You guess first, then you see what the model thought."
)
NO_PHOTOS = "Drop a photograph to play with; or start with a folder of them: context-pred serve IMAGES."
_TRIES = 8


@dataclass(frozen=True)
class Game:
    """One person's game.

    Attributes:
        seed: Of every question, together with its number.
        number: How many questions were drawn.
        question: The one shown, or None.
        guess: The person's answer to it, or None.
        score: So far.
        own: A photograph the person has uploaded; None: those of the collection are asked about.
    """

    seed: int
    number: int = 0
    question: Question | None = None
    guess: int | None = None
    score: Score = field(default_factory=Score)
    own: Photo | None = None

    def following(self, album: Album) -> Game:
        """Draw the next question, of the person's own photograph or of one of the collection.

        Raises:
            ContextPredError: none of the photographs tried can be asked about; the last one's reason.
        """
        generator = torch.Generator().manual_seed((self.seed + self.number) % 2**63)
        problem: ContextPredError = ImageError(NO_PHOTOS)
        order = torch.randperm(len(album.paths), generator=generator)[:_TRIES].tolist()
        for number in [-1] if self.own else order:
            try:
                photo = self.own or open_photo(album.paths[number])
                question = ask(album.model, photo.image, generator, name=photo.name)
            except ContextPredError as error:
                problem = error
            else:
                return replace(self, number=self.number + 1, question=question, guess=None)
        raise problem

    def answered(self, guess: int) -> Game:
        """Take the person's answer; a second one to the same question changes nothing."""
        if self.question is None or self.guess is not None:
            return self
        return replace(self, guess=guess, score=self.score.after(self.question, guess))


Shown = tuple[Game, str, str]
"""What a change gives the page: the game, and the HTML of board and sentence."""


def shown(game: Game, error: ContextPredError | None = None) -> Shown:
    """Draw a game, or say what is wrong."""
    said = "" if error is None else pieces.sentence(str(error), wrong=True)
    if game.question is None:
        return game, pieces.empty(NO_PHOTOS), said
    return game, pieces.board(game.question, game.score, game.guess), said


def begun(album: Album, seed: int | None) -> Shown:
    """Begin a game; without a seed every game is another one."""
    game = Game(secrets.randbits(62) if seed is None else seed)
    if not album.paths:
        return shown(game)
    try:
        return shown(game.following(album))
    except ContextPredError as error:
        return shown(game, error)


def guess_tab(album: Album, limits: Limits, page: gr.Blocks, seed: int | None) -> None:
    """Lay out the tab, within a tab of Gradio's; each session has its own game."""
    piece(pieces.text(LEAD, "cp-lead"), name="guess-lead")
    if not can_guess(album.model):
        none = f"{album.model.card.name} is a backbone alone: it has no head that compares patches."
        piece(pieces.empty(none), name="guess-none")
        return
    state = gr.State(None)
    said = piece(name="guess-said")
    board = board_piece("", name="guess-board")
    with gr.Accordion("Play with a photograph of your own", open=not album.paths):
        own = upload("A photograph", limits, name="guess-upload")

    def following(game: Game) -> Shown:
        try:
            return shown(game.following(album))
        except ContextPredError as error:
            return shown(game, error)

    def guessed(game: Game, event: gr.EventData) -> Shown:
        try:
            return shown(game.answered(sent(event, "position", 8)))
        except ContextPredError as error:
            return shown(game, error)

    def uploaded(path: str | None, game: Game) -> Shown:
        try:
            photo = None if path is None else open_upload(path, limits)
        except ContextPredError as error:
            return shown(game, error)
        return following(replace(game, own=photo))

    quiet = {"outputs": [state, board, said], **in_turn("guess"), "show_progress": "hidden"}
    page.load(lambda: begun(album, seed), None, **quiet)
    board.guess(guessed, state, **quiet)
    board.following(following, state, **quiet)
    own.upload(uploaded, [own, state], **quiet)
    own.clear(uploaded, [own, state], **quiet)
