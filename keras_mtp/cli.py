"""The command line: parses, calls one function, prints. Nothing here decides anything about training.

The backend is chosen before anything imports Keras, so the modules that need it are imported inside the commands; that
also lets `keras-mtp --help` answer at once. Results go to standard output, progress and errors to standard error.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from keras_mtp import __version__, backend, run_folder
from keras_mtp.errors import Diverged, Interrupted, UserError
from keras_mtp.export import formats
from keras_mtp.export.folder import require_absent
from keras_mtp.limits import Limits
from keras_mtp.recipe import (
    Recipe,
    apply_overrides,
    available_recipes,
    documented_fields,
    flat,
    load_recipe,
    with_options,
)

_LONGEST_LINE = 800  # characters of an error


class _Mistake(click.ClickException):
    """A `UserError` as click shows it: one line on standard error."""

    exit_code = 2


class _Commands(click.Group):
    """Shows a user's mistake as one line, with exit code 2; a run that diverged, with 3; and ends a command that a signal
    interrupted with 128 and its number."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        with _usage_in_one_line():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _usage_in_one_line():
                return super().invoke(ctx)
        except UserError as error:
            raise _Mistake(_one_line(str(error))) from error
        except OSError as error:  # a folder that may not be read or written, a full disk
            said = f"{error.strerror or error}: {error.filename or 'a file of the run'}"
            raise _Mistake(_one_line(said)) from error
        except Diverged as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(3)
        except Interrupted as stopped:
            click.echo(f"\n{stopped}", err=True)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            sys.exit(130)


def _one_line(text: str) -> str:
    """What an error says, on one line. It may repeat what stands in a file, and that must not steer a terminal."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return _shortened("".join(shown))


def _shortened(line: str) -> str:
    """Without its middle, where it is too long to be read: what is wrong comes first, what to do last."""
    return (
        line
        if len(line) <= _LONGEST_LINE
        else f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    )


@contextlib.contextmanager
def _usage_in_one_line() -> Iterator[None]:
    """click puts two lines about `--help` in front of what is wrong."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "keras-mtp"
        raise _Mistake(f"{error.format_message()} See `{command} --help`.") from error


def _is_run(ctx: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    return folder if folder is None else run_folder.require_run(folder)


_backend = click.option(
    "--backend",
    "backend_name",
    type=click.Choice(backend.BACKENDS),
    help="What Keras runs on. Default: KERAS_BACKEND, else the first of these that is installed.",
)
_data = click.option(
    "--data",
    metavar="hub|tfds|builtin|PATH",
    help="Where the examples come from: downloaded, generated here, a folder with train.jsonl and test.jsonl (for coqa "
    "train.json and dev.json), or, with the task jsonl, a file of your own.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
_run_argument = click.argument("run", type=click.Path(path_type=Path), callback=_is_run)
_model = click.option(
    "--model",
    metavar="NAME|PATH",
    help="The Llama to start from: smollm2-135m, a GGUF file, a folder, hf://org/name, a preset.",
)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="keras-mtp")
def cli() -> None:
    """Fine-tune a pretrained Llama with a prefix and heads that predict several tokens ahead.

    \b
    Start here:
      keras-mtp recipes                          what can be run
      keras-mtp recipe gsm8k --data builtin      run it; about 15 minutes on two CPU cores
      keras-mtp recipe jsonl --data my.jsonl     learn from conversations of your own
      keras-mtp generate RUN "PROMPT"            ask the model that came out of it
      keras-mtp export RUN DIR                   write it for a server, or another library
      keras-mtp serve DIR                        serve that: OpenAI's API, TensorFlow Serving's, a page
    """


@cli.command()
@click.argument("name", metavar="[NAME|PATH]", required=False)
@_backend
@_data
@_model
@click.option(
    "--task",
    metavar="gsm8k|coqa|instruct|jsonl",
    help="What to train for, if not what the recipe says; jsonl learns from conversations of your own. Without NAME it "
    "picks the recipe too.",
)
@click.option(
    "--from",
    "start",
    metavar="RUN",
    help="Start from what a finished run trained, and its heads; with a higher heads.count, add heads to it.",
)
@click.option(
    "--run",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to keep the run. Default: runs/NAME-BACKEND-TIME.",
)
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field of the recipe, such as heads.count=2; may be given several times. "
    "`keras-mtp recipes --fields` lists them.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@_as_json
def recipe(
    name: str | None,
    backend_name: str | None,
    data: str | None,
    task: str | None,
    model: str | None,
    start: str | None,
    folder: Path | None,
    assignments: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Train and judge a model as a recipe says.

    NAME is one that `keras-mtp recipes` lists; PATH is a TOML file of your own. The run's folder gets the recipe as it
    was run, the losses of every step, a checkpoint, a report and its curves. A run that was cut off goes on by the same
    command, with --run, to the same result.
    """
    if name is None and task is None:
        raise UserError("`recipe` needs NAME, PATH or --task. `keras-mtp recipes` lists the names.")
    options = {"task": task, "data.source": data, "model.name": model, "start.run": start}
    chosen = with_options(
        load_recipe(name or task or ""), options | ({"start.checkpoint": ""} if start else {})
    )
    chosen = apply_overrides(chosen, assignments)
    backend_name = backend.select(backend_name)
    folder = folder or _folder_name(chosen, backend_name)
    alone = chosen.distribution.data * chosen.distribution.model == 1
    # Before anything slow is imported; of several processes, which know of each other only later, one claims it.
    with _only_result_on_stdout(), run_folder.claimed(folder) if alone else contextlib.nullcontext():
        with backend.quiet_imports():
            from keras_mtp import pipeline

        result = pipeline.run(chosen, folder, progress=not quiet)
    if not backend.speaks():
        return
    if as_json:
        _print_json(result.to_json())
        return
    from keras_mtp.report import page

    click.echo(page.summary(result))
    click.echo(f"The whole report: {folder / run_folder.REPORT_PAGE}")


@cli.command(short_help="List what can be run, or every field of a recipe.")
@click.option("--fields", is_flag=True, help="List every field of a recipe instead, with its default.")
@_as_json
def recipes(fields: bool, as_json: bool) -> None:
    """List the recipes that can be run, or the fields they are made of."""
    rows = _field_rows() if fields else _recipe_rows()
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        click.secho(_assignment(row) if fields else row["name"], bold=True)
        click.echo(click.wrap_text(row["description"], 100, initial_indent="    ", subsequent_indent="    "))


@cli.command(short_help="Judge a finished run again, or a base model.")
@click.argument("run", required=False, type=click.Path(path_type=Path), callback=_is_run)
@_model
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|PATH",
    help="With --model: the recipe whose data and settings to judge by. Default: gsm8k.",
)
@_backend
@_data
@click.option(
    "--limit", type=click.IntRange(min=1), help="Judge on at most this many examples. Default: the recipe's."
)
@click.option(
    "--harness",
    metavar="TASK[,TASK...]",
    help="Ask these tasks of EleutherAI's lm-evaluation-harness instead: names, or YAML files. All of their items, unless "
    "there is a --limit. A RUN's folder gets harness/TASK.json.",
)
@click.option(
    "--harness-path",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="With --harness: a folder with YAML files of further tasks.",
)
@click.option("--chat", is_flag=True, help="With --harness: put the prompts into the model's chat template.")
@click.option(
    "--max-length",
    metavar="TOKENS",
    type=click.IntRange(min=2),
    help="With --harness: cut longer texts on the left. Default: what the model was made for.",
)
@_as_json
def evaluate(
    run: Path | None,
    model: str | None,
    recipe_name: str | None,
    backend_name: str | None,
    data: str | None,
    limit: int | None,
    harness: str | None,
    as_json: bool,
    **harness_options: Any,
) -> None:
    """Judge a finished run again, or with --model a base model as it came.

    RUN is the run's folder. Without options the numbers are those of its report, on any backend.
    """
    if harness is None and any(harness_options.values()):
        raise UserError(
            "`--harness-path`, `--chat` and `--max-length` go with --harness. Give its tasks too."
        )
    if harness is not None and data is not None:
        raise UserError(
            "`--data` does not go with --harness: its tasks bring their own. Leave one of them out."
        )
    if (run is None) == (model is None):
        raise UserError("`evaluate` must be given either the folder of a RUN or a --model. Give one of them.")
    if run is not None and recipe_name is not None:
        raise UserError("`--recipe` goes with --model: a RUN has its own. Leave it out.")
    chosen = load_recipe(recipe_name or "gsm8k")
    backend.select(backend_name)
    if harness is not None:
        chosen = with_options(chosen, {"model.name": model})
        _evaluate_harness(run, chosen, as_json, tasks=harness, limit=limit, **harness_options)
        return
    with _only_result_on_stdout():
        with backend.quiet_imports():
            from keras_mtp import runs

        if run is not None:
            result = runs.evaluate(run, data=data, limit=limit)
        else:
            options = {"model.name": model, "data.source": data, "evaluation.limit": limit}
            result = runs.evaluate_base(with_options(chosen, options))
    if as_json:
        _print_json(result)
        return
    for key, value in flat(result):
        click.echo(f"{key:<24} {value:.4f}" if isinstance(value, float) else f"{key:<24} {value}")


def _evaluate_harness(
    run: Path | None, base: Recipe, as_json: bool, *, tasks: str, harness_path: Path | None, **options: Any
) -> None:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError(f"`--harness` must name at least one task. Received: {tasks!r}.")
    with _only_result_on_stdout():
        with backend.quiet_imports():
            from keras_mtp import harness

        wish = harness.Wish(tasks=names, path=harness_path, **options)
        results = harness.evaluate_base(base, wish) if run is None else harness.evaluate_run(run, wish)
    if as_json:
        _print_json([result.to_json() for result in results])
        return
    from rich.console import Console

    Console().print(harness.results.table(results))


@cli.command()
@_run_argument
@click.argument("prompt")
@_backend
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer, in tokens.",
)
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the template.")
@click.option(
    "--speculate/--plain",
    default=False,
    help="Let the run's heads draft tokens that are then verified several at a time, or not (the default).",
)
@click.option("--stats", is_flag=True, help="Tell what it cost, on standard error.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0, max=100.0),
    default=0.0,
    show_default=True,
    help="Draw every token by its probability; 0 takes the likeliest.",
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw among so many likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    default=1.0,
    help="Draw among the fewest tokens that have this probability together.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End the answer at this text; repeatable.")
@_as_json
def generate(
    run: Path,
    prompt: str,
    backend_name: str | None,
    stats: bool,
    as_json: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    **wish: Any,
) -> None:
    """Let the model of a finished run answer a prompt.

    RUN is the run's folder; PROMPT is what a user would ask: the template that the run was trained with is put around
    it. With --raw PROMPT is the whole input, and markers such as <|im_end|> in it are the tokens they name.
    """
    if not prompt.strip():
        raise UserError(f"`PROMPT` must not be empty. Received: {prompt!r}. Write what to answer.")
    backend.select(backend_name)
    out = sys.stdout
    with _only_result_on_stdout():
        with backend.quiet_imports():
            from keras_mtp import Sampling, runs

        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        on_text = None if as_json else lambda _, text: click.echo(text, file=out, nl=False)
        completion, statistics = runs.answer(run, prompt, sampling=sampling, on_text=on_text, **wish)
    if as_json:
        _print_json(
            {"prompt": prompt, "completion": completion}
            | ({"statistics": statistics.to_json()} if stats else {})
        )
    else:
        click.echo()
        if stats:
            click.echo(statistics.summary(), err=True)


@cli.command(short_help="Write a finished run's model for a server, or for another library.")
@_run_argument
@click.argument(
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    callback=lambda ctx, parameter, folder: require_absent(folder),
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(formats.FORMATS)),
    default=formats.DEFAULT,
    show_default=True,
    help=formats.described(),
)
@_as_json
def export(run: Path, folder: Path, form: str, as_json: bool) -> None:
    """Write the model of a finished run so that other programs can run it without Keras.

    RUN is the run's folder, whatever backend trained it. DIR is made, and only after another program has read back what was
    written and has said what the model says; its README.md has a client to copy.
    """
    for note in formats.require(form, load_recipe(run / run_folder.RECIPE)):
        click.echo(note, err=True)
    backend.select(formats.FORMATS[form].backend)
    with _only_result_on_stdout():
        with backend.quiet_imports():
            from keras_mtp import runs

        exported = runs.export(run, folder, form)
    if as_json:
        _print_json(exported.to_json())
    else:
        click.echo(exported.summary())


@cli.command(short_help="Serve an exported model: OpenAI's API, TensorFlow Serving's, a page.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for everybody."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free one."
)
@click.option("--name", help="What clients call the model. Default: the folder's name.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=Limits.max_batch,
    show_default=True,
    help="Answers that are given at the same time.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=Limits.max_queue,
    show_default=True,
    help="Further ones that may wait; the next is told to come again later.",
)
@click.option(
    "--max-length",
    metavar="TOKENS",
    type=click.IntRange(min=2),
    help="Longest prompt with its answer. Default: what the model was made for.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=Limits.max_new_tokens,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=Limits.max_body_bytes,
    show_default=True,
    help="Longest request.",
)
@click.option(
    "--drain-seconds",
    type=click.IntRange(min=0),
    default=Limits.drain_seconds,
    show_default=True,
    help="How long answers may go on when the server is told to end.",
)
def serve(folder: Path, host: str, port: int, name: str | None, **limits: Any) -> None:
    """Serve a folder that `keras-mtp export RUN DIR` wrote, until it is interrupted.

    Needs TensorFlow and the extra "serve", not Keras. Nobody is asked for a password: on another host than 127.0.0.1
    everybody who reaches it may ask.
    """
    try:
        from keras_mtp import serve as server
    except ImportError as error:
        raise UserError(
            f'`serve` needs what is not installed ({error.name}). Run: pip install "keras_mtp[serve,tensorflow]"'
        ) from error
    server.run(folder, host=host, port=port, name=name, **limits)


@cli.command(short_help="Compare arms of a recipe over several seeds: does it help?")
@click.argument("name", metavar="NAME|PATH")
@click.option(
    "--arms",
    "arms_name",
    metavar="NAME|PATH",
    default="standard",
    show_default=True,
    help="What to compare: a TOML file of settings by arm, and the grid that each is tuned over.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of every arm.")
@_backend
@_data
@_model
@click.option(
    "--run",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the study; one that was begun there goes on. Default: runs/NAME-study-BACKEND.",
)
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field of the recipe, for all arms.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--equal",
    type=click.Choice(["steps", "seconds"]),
    default="steps",
    show_default=True,
    help="What all arms get alike: joint steps, or training time, as long as the baseline's, the heads' warm-up counted.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@_as_json
def study(
    name: str,
    arms_name: str,
    seeds: int,
    backend_name: str | None,
    data: str | None,
    model: str | None,
    folder: Path | None,
    assignments: tuple[str, ...],
    jobs: int,
    equal: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare arms of a recipe: each is tuned over the same grid, then run with several seeds.

    Arms are compared by the held-out loss of head_1, seed by seed and item by item, with intervals over both. Finished
    runs are kept and never made again, so that a study can be cut off and gone on with by the same command.
    """
    from keras_mtp import study as studies
    from keras_mtp.study import page
    from keras_mtp.study.arms import load_arms

    chosen = with_options(load_recipe(name), {"data.source": data, "model.name": model})
    chosen = apply_overrides(chosen, assignments)
    arms = load_arms(arms_name, chosen)
    backend_name = backend.select(backend_name)
    if backend.launched(backend_name):
        raise UserError(
            "`study` must be started as one process: it starts its runs itself, each with the devices of distribution.data. Received: "
            "the variables of one process among several. Start it without them."
        )
    folder = folder or Path("runs") / f"{chosen.name}-study-{backend_name}"
    folder.mkdir(parents=True, exist_ok=True)
    outcome = studies.run(
        chosen, arms, folder, seeds=seeds, backend=backend_name, jobs=jobs, equal=equal, progress=not quiet
    )
    if as_json:
        _print_json(outcome.to_json())
        return
    click.echo(outcome.sentence)
    click.echo(f"The whole report: {folder / page.MARKDOWN}")


def _folder_name(recipe: Recipe, backend_name: str) -> Path:
    return Path("runs") / f"{recipe.name}-{backend_name}-{datetime.now():%Y%m%d-%H%M%S}"


def _recipe_rows() -> list[dict[str, Any]]:
    loaded = [load_recipe(path) for path in available_recipes().values()]
    return [
        {"name": recipe.name, "task": recipe.task, "description": recipe.description} for recipe in loaded
    ]


def _field_rows() -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "type": spec.type.__name__,  # type: ignore[union-attr]  # never a string: annotations are not postponed
            "default": spec.default,
            "choices": list(spec.metadata.get("choices", ())),
            "description": spec.metadata["doc"],
        }
        for key, spec in documented_fields()
    ]


def _assignment(row: dict[str, Any]) -> str:
    choices = f"   ({' | '.join(row['choices'])})" if row["choices"] else ""
    return f"{row['key']} = {json.dumps(row['default'])}{choices}"


@contextlib.contextmanager
def _only_result_on_stdout() -> Iterator[None]:
    """Whatever a library prints while it works goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point of `keras-mtp`."""
    try:
        cli(prog_name="keras-mtp")
    except SystemExit as end:
        backend.ended(end.code if isinstance(end.code, int) else 1)
        raise
