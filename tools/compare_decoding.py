"""Decodes GSM8K's test prompts with the drafts of a run's heads, and without: exact mode promises the same tokens.

    .venv/bin/python tools/compare_decoding.py RUN --backend jax --data FOLDER --work DIR
    .venv/bin/python tools/compare_decoding.py RUN --backend torch --quick

For every K of `--tokens-per-pass` the run's first K - 1 heads draft; for every size of `--batches` so many prompts of unlike length
are answered together. Greedily, up to `--new-tokens`, three ways:

    speculative    with drafts, in exact mode
    exact          without, by passes over the same fixed number of rows and tokens: no token may differ
    plain          a prompt and a token at a time. Its products have other shapes, so that their last bits differ; where its answer
                   parts from exact's, the two tokens must be less than 1e-3 apart, in logits of the model without a cache

SmolLM2-135M with three sequential heads on jax in float32, `--new-tokens 16`: of 200 answers, 3,200 tokens, none was changed by drafts and
none parted from plain decoding, for K of 2, 3 and 4 (1.61, 1.84 and 1.97 tokens a pass), by 1 and by 7.
On torch and on TensorFlow, with heads trained for 40 steps, for K of 2, 3 and 4, by 1 and by 7: none likewise, of as many tokens
(1.23 to 1.25 tokens a pass). Of all 1,319 answers on jax, with these heads, K of 4, by 1, 21,103 tokens: none likewise (1.26).

`--work DIR` keeps the answers, batch by batch; the same command goes on there. Exit code 1 where something differs
that must not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from rich.table import Table

from keras_mtp import backend
from keras_mtp.journal import Journal
from tools.benchmarks.screen import console
from tools.partings import TIE, Parting, first_difference, parting

Ids = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one K and one size of batches.

    Args:
        k: tokens that a pass may yield. rows, width: of a pass, padding counted.
        tokens: of exact mode's answers. changed: answers that are others with drafts.
        tokens_per_pass: with drafts, over all passes, also those after drafts were given up.
        from_plain: where exact mode and plain decoding part.
    """

    backend: str
    k: int
    batch: int
    rows: int
    width: int
    prompts: int
    tokens: int
    changed: int
    tokens_per_pass: float
    from_plain: list[Parting]

    @property
    def holds(self) -> bool:
        return not self.changed and all(parting.margin < TIE for parting in self.from_plain)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run with heads")
    parser.add_argument("--backend", choices=backend.BACKENDS, default="jax")
    parser.add_argument("--data", default="builtin", help="hub, tfds, builtin or a folder")
    parser.add_argument("--prompts", type=int, default=200, help="the first of the test set; 0 for all")
    parser.add_argument("--new-tokens", type=int, default=64, help="of the longest answer")
    parser.add_argument(
        "--tokens-per-pass", type=int, nargs="+", metavar="K", help="all that the heads allow"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7], help="prompts answered together")
    parser.add_argument("--quick", action="store_true", help="4 prompts, 12 tokens")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to keep answers")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.new_tokens = 4, 12
    backend.select(options.backend)
    rows = Comparison(options).rows()
    show(rows)
    if options.json:
        found = [asdict(row) | {"holds": row.holds} for row in rows]
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(row.holds for row in rows))


class Comparison:
    """The run, the prompts, and the answers to them."""

    def __init__(self, options: argparse.Namespace):
        from keras_mtp import runs
        from keras_mtp.data.encoding import encode_prompt
        from keras_mtp.tasks import load_task

        self.options = options
        self.model = runs.load(options.run)
        self.most = 1 + len(self.model.heads)
        examples = load_task("gsm8k", options.data).examples("test")[: options.prompts or None]
        self.prompts = [encode_prompt(example.prompt, self.model.tokenizer) for example in examples]

    def rows(self) -> list[Row]:
        """A row for every K and size of batches."""
        wanted = self.options.tokens_per_pass or range(2, self.most + 1)
        if not set(wanted) <= set(range(2, self.most + 1)):
            sys.exit(f"Error: with the heads of {self.options.run} K must be from 2 to {self.most}.")
        plain, _ = self.answers("plain", self.model, 1)
        return [
            row
            for k in wanted
            for model in [with_heads(self.model, self.options.run, k - 1)]
            for row in [self.row(k, model, batch, plain) for batch in self.options.batches]
        ]

    def row(self, k: int, model: Any, batch: int, plain: Ids) -> Row:
        from keras_mtp.generation.fixed_shape import fixed_shape

        shape = fixed_shape(batch, k)
        console(stderr=True).print(f"K = {k}, batches of {batch}: passes over {shape[0]} x {shape[1]} ...")
        # Said once for every K whose passes have the same shape.
        exact, _ = self.answers(f"exact-{shape[0]}x{shape[1]}", model, batch, exact=True)
        drafted, passes = self.answers(f"speculative-{k}", model, batch, speculate=True)
        tokens = sum(map(len, exact))
        return Row(
            backend=self.options.backend,
            k=k,
            batch=batch,
            rows=shape[0],
            width=shape[1],
            prompts=len(exact),
            tokens=tokens,
            changed=sum(first_difference(*pair) is not None for pair in zip(exact, drafted, strict=True)),
            tokens_per_pass=tokens / max(passes, 1),
            from_plain=self.parted(exact, plain),
        )

    def parted(self, exact: Ids, plain: Ids) -> list[Parting]:
        """Where exact mode's answers part from those of plain decoding."""
        from keras_mtp.export.another_program import logits_of

        stop_ids = self.model.tokenizer.eos_ids
        found = (
            parting(
                question,
                prompt,
                answers,
                stop_ids=stop_ids,
                logits=lambda ids: logits_of(self.model, np.array([ids], "int32"))[0, -1],
            )
            for question, (prompt, *answers) in enumerate(zip(self.prompts, exact, plain, strict=True))
        )
        return [place for place in found if place is not None]

    def answers(self, way: str, model: Any, batch: int, **arguments: bool) -> tuple[Ids, int]:
        """(what the model says to all prompts, so many at a time; in how many passes, counted for every prompt)."""
        from keras_mtp.generation.generator import Generator

        options = self.options
        name = f"{options.backend}-{way}-by-{batch}"
        path = options.work and options.work / f"{name}.jsonl"
        journal = Journal(path, f"{name}, {options.run.resolve()}, {options.new_tokens}")
        wish = {"stop_ids": model.tokenizer.eos_ids, "max_new_tokens": options.new_tokens}
        generator = Generator(model, **wish, **arguments)

        def answer(prompts: Ids) -> tuple[Ids, int]:
            found = generator.answer(prompts)
            return found.tokens, found.statistics.passes

        pieces = [self.prompts[start : start + batch] for start in range(0, len(self.prompts), batch)]
        found = [journal.piece(prompts, partial(answer, prompts)) for prompts in pieces]
        return [tokens for piece, _ in found for tokens in piece], sum(passes for _, passes in found)


def with_heads(whole: Any, run: Path, count: int) -> Any:
    """The run's model with its first heads alone."""
    from keras_mtp.checkpoint import trained_variables
    from keras_mtp.models.from_recipe import model_from_recipe
    from keras_mtp.recipe import load_recipe, updated
    from keras_mtp.run_folder import RECIPE

    if count == len(whole.heads):
        return whole
    model, _ = model_from_recipe(updated(load_recipe(run / RECIPE), {"heads.count": count}))
    trained = trained_variables(whole)
    for name, variable in trained_variables(model).items():
        variable.assign(trained[name])
    model.draft_vocabulary = whole.draft_vocabulary
    return model


def show(rows: Sequence[Row]) -> None:
    """The numbers as a table, and every place where plain decoding parts from exact mode."""
    headings = ("backend", "K", "batch", "a pass", "prompts", "tokens", "changed", "tokens a pass")
    table = Table(*headings, "parted from plain", "largest margin")
    for row in rows:
        margin = f"{max(parting.margin for parting in row.from_plain):.1e}" if row.from_plain else ""
        table.add_row(
            row.backend,
            *map(str, (row.k, row.batch, f"{row.rows} x {row.width}", row.prompts, row.tokens, row.changed)),
            f"{row.tokens_per_pass:.2f}",
            str(len(row.from_plain)),
            margin,
        )
    console().print(table)
    for row in rows:
        for p in row.from_plain:
            where = f"{row.backend}, K = {row.k}, batch {row.batch}, prompt {p.question}, token {p.place}"
            console().print(f"{where}: exact {p.said[0]}, plain {p.said[1]}, margin {p.margin:.1e}")


if __name__ == "__main__":
    main()
