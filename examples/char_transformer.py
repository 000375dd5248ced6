"""A small character transformer at a learning rate that is too high, with and without capped norms, in plain PyTorch.

The text is Python's own help topics. Without a cap the norms of the kernels grow with each step, those of the logits as
their products, and the loss with them, until it is no number. With `MaxSpectralNorm("rms", blockwise=True)` no kernel,
and of the attention no head, lets the root mean square of a vector grow, whatever the learning rate. There is no layer
normalization, as in Newhouse et al., Training Transformers with Enforced Lipschitz Constants, 2025; `--layer-norm`
puts it in: the uncapped loss then comes back from where it jumps to.

Run: python examples/char_transformer.py --picture loss.png
"""

from collections.abc import Iterator
from math import inf, isfinite
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import opnorm.torch

torch.set_num_threads(1)  # the network is small
WIDTH, HEADS, BLOCKS, CONTEXT, BATCH = 32, 4, 2, 32, 16
TEXT = "".join(letter for _, topic in sorted(topics.items()) for letter in topic if letter.isascii())
LETTERS = sorted(set(TEXT))


class Variant(NamedTuple):
    """How to train."""

    name: str
    learning_rate: float
    is_capped: bool


VARIANTS = (
    Variant("no cap, learning rate 0.01", 0.01, False),
    Variant("no cap, learning rate 0.1", 0.1, False),
    Variant("capped, learning rate 0.1", 0.1, True),
)


class Run(NamedTuple):
    """What one training was like."""

    losses: list[float]  # nats a character, up to the first that is no number
    logits: float  # the largest norm of W_q^T W_k of any head, at the end

    @property
    def end(self) -> float:
        """The mean of the last losses; infinite if there was one that is no number."""
        last = self.losses[-20:]
        return sum(last) / len(last) if isfinite(self.losses[-1]) else inf


class Block(nn.Module):
    """Attention and a perceptron, each added to what it was given."""

    def __init__(self, layer_norm: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.before = nn.ModuleList([nn.LayerNorm(WIDTH) if layer_norm else nn.Identity() for _ in range(2)])
        self.register_buffer("later", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the characters' vectors after it; each sees those before it only."""
        y = self.before[0](x)
        x = x + self.attention(y, y, y, attn_mask=self.later, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(self.before[1](x))))


class Transformer(nn.Module):
    """The logits of the next character, at each place of a text."""

    def __init__(self, layer_norm: bool) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(layer_norm) for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of a batch of texts of `CONTEXT` characters."""
        return self.head(self.blocks(self.letters(text) + self.places.weight))


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random pieces of the text, and the same pieces one character later."""
    numbers = {letter: number for number, letter in enumerate(LETTERS)}
    text = torch.tensor([numbers[letter] for letter in TEXT])
    draw = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=draw)
        pieces = text[starts + torch.arange(CONTEXT + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def trained(variant: Variant, steps: int, seed: int, layer_norm: bool = False) -> Run:
    """Return what training was like, to the first loss that is no number."""
    torch.manual_seed(seed)
    model, data = Transformer(layer_norm), batches(seed)
    optimizer = torch.optim.Adam(model.parameters(), variant.learning_rate)
    if variant.is_capped:  # the tables are looked up, not multiplied with: their shape says nothing of their norm
        rule = opnorm.torch.MaxSpectralNorm("rms", blockwise=True)
        opnorm.torch.constrain(model, optimizer, rule, exclude=["letters", "places"])
        opnorm.torch.project(model)
    losses: list[float] = []
    while len(losses) < steps and isfinite(sum(losses[-1:])):
        text, following = next(data)
        loss = nn.functional.cross_entropy(model(text).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Run(losses, opnorm.torch.monitor(model)["spectral/query_key"])


def row(variant: Variant, runs: list[Run]) -> tuple[str, ...]:
    """Return the texts of a row: medians over the runs, and how many ended with a loss that is no number."""
    ended = f"{sum(not isfinite(run.losses[-1]) for run in runs)} of {len(runs)}"
    largest = median(max((loss for loss in run.losses[10:] if isfinite(loss)), default=inf) for run in runs)
    end = median(run.end for run in runs)
    return variant.name, ended, f"{largest:.4g}", f"{end:.3f}", f"{median(run.logits for run in runs):.3g}"


def draw(path: Path, runs: dict[Variant, list[Run]]) -> None:
    """Write a picture of all losses."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    for number, (variant, several) in enumerate(runs.items()):
        for run in several:
            shown = [loss if isfinite(loss) else None for loss in run.losses]
            axes.plot(shown, color=f"C{number}", linewidth=0.8, label=variant.name if run is several[0] else None)
            if not isfinite(run.losses[-1]):
                axes.axvline(len(run.losses), color=f"C{number}", linewidth=0.5, linestyle="dotted")
    axes.set(xlabel="steps", ylabel="nats a character", yscale="log", ylim=(1.8, 1e3))
    axes.legend()
    axes.figure.savefig(path, dpi=120)


def main(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 400,
    seeds: Annotated[int, typer.Option(help="How many trainings of each kind.")] = 3,
    layer_norm: Annotated[bool, typer.Option("--layer-norm", help="Normalize before each part.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short training of each kind.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Where to draw the losses; needs matplotlib.")] = None,
) -> None:
    """Train all, and print what each was like."""
    steps, seeds = (60, 1) if quick else (steps, seeds)
    runs = {variant: [trained(variant, steps, seed, layer_norm) for seed in range(seeds)] for variant in VARIANTS}
    table = Table("training", "ended in NaN", "largest loss", "loss at the end", "norm of W_q^T W_k")
    for variant, several in runs.items():
        table.add_row(*row(variant, several))
    Console().print(table)
    if picture is not None:
        draw(picture, runs)


if __name__ == "__main__":
    typer.run(main)
