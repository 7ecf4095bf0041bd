"""The command line: python -m expressive_losses.experiments."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expressive_losses.cli.arguments import Parser, path
from expressive_losses.cli.common import choose_device
from expressive_losses.errors import UserError
from expressive_losses.experiments import grid, polytope, sweep_file
from expressive_losses.experiments.adopt import adopt
from expressive_losses.experiments.execute import is_trained, row_of_cell
from expressive_losses.experiments.overview import write_overview
from expressive_losses.experiments.report import report, rows_file
from expressive_losses.experiments.rows import by_command, collect, found, own_seeds, read
from expressive_losses.experiments.runner import Job, Result, run
from expressive_losses.experiments.spec import SCALES, Experiment, load
from expressive_losses.locking import held
from expressive_losses.verify.shard import parse_shard

RUNS = Path("runs/experiments")


class CellsFailed(Exception):
    """Some cells, trials or pages could not be done; the others are."""


def run_command(arguments: Sequence[str]) -> None:
    """Do the cells of experiment files that are not done yet, then render their tables and figures."""
    parser = _parser("run", run_command.__doc__)
    _add_files(parser)
    _add_how(parser)
    parser.add_argument("--missing", action="store_true", help="only cells that have no row in --results yet")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="default $EXPRESSIVE_LOSSES_DATA or ./data")
    options = parser.parse_args(arguments)
    experiments = [load(path) for path in options.files]
    grids = [grid.cells(one, options.scale, options.seeds) for one in experiments]
    todo = [cell for cells in grids for cell in cells if cell.runs]
    if options.shard:
        index, count = parse_shard(options.shard)
        todo = grid.shard(todo, index, count)
    if options.missing:  # after the shares are dealt out: they must not depend on what has a row by now
        without = {id(cell) for one, cells in zip(experiments, grids, strict=True)
                   for cell in _without_row(one, cells, options)}  # fmt: skip
        todo = [cell for cell in todo if id(cell) in without]
    root = options.runs / "cells"
    if options.dry_run:
        _list(todo, root)
        return
    _made(root, "--runs")  # before hours of work, which would end without a page
    for one in experiments:
        _made(rows_file(one, options.scale, _results(options)).parent, "--results")
    began = time.monotonic()
    jobs = [Job(cell, root, options.device, options.data_dir) for cell in todo]

    def keep(cell: grid.Cell) -> None:
        """Write the row of a cell at once: whatever happens to the others, it is there."""
        for one, cells in zip(experiments, grids, strict=True):
            if any(cell is mine for mine in cells):
                _keep(cell, root, rows_file(one, options.scale, _results(options)))

    results = run(jobs, options.jobs, _say, keep)
    unrendered = _render_all(experiments, options)
    counts = {state: sum(result.state == state for result in results) for state in ("done", "there", "failed")}
    seconds = time.monotonic() - began
    print(f"{counts['done']} done, {counts['there']} there before, {counts['failed']} failed; {seconds:.0f} s")
    _complain([result for result in results if result.state == "failed"], unrendered)


def report_command(arguments: Sequence[str]) -> None:
    """Render the tables and figures of experiment files again, from the rows and the cells that are there."""
    parser = _parser("report", report_command.__doc__)
    _add_files(parser)
    options = parser.parse_args(arguments)
    if options.results is None and not options.runs.is_dir():
        raise UserError(f"--runs {options.runs}: no such folder")
    _complain([], _render_all([load(path) for path in options.files], options))


def adopt_command(arguments: Sequence[str]) -> None:
    """Take finished run folders of train.py, with those of verify.py in them, as cells; then render."""
    parser = _parser("adopt", adopt_command.__doc__)
    _add_files(parser)
    parser.add_argument("--from", type=path, nargs="+", required=True, metavar="RUN", dest="taken", help="run folders")
    options = parser.parse_args(arguments)
    root, experiments = options.runs / "cells", [load(path) for path in options.files]
    cells = [cell for one in experiments for cell in grid.cells(one, options.scale, options.seeds) if cell.runs]
    _made(root, "--runs")
    for run_ in options.taken:
        print(f"{run_}: {', '.join(adopt(run_, cells, root)) or 'nothing new for these tables'}")
    _complain([], _render_all(experiments, options))


def polytope_command(arguments: Sequence[str]) -> None:
    """Train the toy network of IBP's figure 4, draw its polytope and interval bounds; seconds a seed on any machine.

    Every scale is the paper's own setting; smoke has one seed, the others five.
    """
    parser = _parser("polytope", polytope_command.__doc__)
    _add_how(parser)
    options = parser.parse_args(arguments)
    seeds = options.seeds or ([0] if options.scale == "smoke" else list(range(5)))
    if options.shard:
        index, count = parse_shard(options.shard)
        seeds = seeds[index::count]
    if options.dry_run:
        print("\n".join(polytope.command(seed) for seed in seeds))
    elif seeds:
        out = _results(options) / options.scale / "ibp" / "figure4"
        _made(out.parent, "--results")
        rows = polytope.reproduce(seeds, out, options.jobs)
        print(f"bounds / rectangle about the logits, by step: {rows[0]['looseness']}; {out}.jsonl and .png (seed 0)")


def sweep_command(arguments: Sequence[str]) -> None:
    """Tune: do the trials of a sweep file that are not done yet, then export their Pareto front."""
    parser = Parser("expressive_losses.experiments sweep", sweep_command.__doc__)
    parser.add_argument("file", type=path, metavar="FILE", help="sweep file")
    parser.add_argument("--out", type=path, metavar="DIR", help="default runs/sweeps/<file>")
    parser.add_argument(
        "--storage", metavar="URL", help="database of Optuna, for several machines; default: a journal file"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--data-dir", type=path, metavar="DIR", help="default $EXPRESSIVE_LOSSES_DATA or ./data")
    options = parser.parse_args(arguments)
    try:
        from expressive_losses.experiments import sweep, sweep_report  # here: only this command needs Optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("tuning needs Optuna, which is not installed. Type `pip install 'optuna>=5,<6'`.") from None
    asked = sweep_file.load(options.file)
    out = options.out or Path("runs/sweeps") / asked.name
    tuner = sweep.Tuner(asked, out, choose_device(options.device), options.data_dir, options.storage, _say)
    tuner.run()
    summary = sweep_report.write(tuner)
    found = (
        f"{summary['trials']} trials, {len(summary['front'])} on the front, hypervolume {summary['hypervolume']:.4f}"
    )
    print(f"{found}: {out}")
    if missing := sweep_report.complaint(tuner):
        raise CellsFailed(missing)


def overview_command(arguments: Sequence[str]) -> None:
    """Write the list of all experiment files, with what was run of each, into a document."""
    parser = Parser("expressive_losses.experiments overview", overview_command.__doc__)
    parser.add_argument("files", nargs="+", type=path, metavar="FILE", help="experiment files")
    parser.add_argument("--document", type=path, required=True, metavar="FILE", help="with the two marks in it")
    parser.add_argument("--results", type=path, default=Path("results"), metavar="DIR")
    options = parser.parse_args(arguments)
    write_overview(options.document, options.files, options.results)


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = Parser(f"expressive_losses.experiments {name}", description)
    parser.add_argument(
        "--scale", choices=SCALES, default="smoke",
        help="smoke: minutes on two cores (default); cpu: hours, small networks; full: the paper's setting, on GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=_seed, nargs="+", metavar="SEED",
        help="what to run, in place of the file's; a page has all seeds that were run",
    )  # fmt: skip
    parser.add_argument("--runs", type=path, default=RUNS, metavar="DIR", help=f"trained networks; default {RUNS}")
    parser.add_argument("--results", type=path, metavar="DIR", help="rows and tables; default: results in --runs")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=path, metavar="FILE", help="experiment files")


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_processes, default=1, metavar="N", help="processes: one a GPU, or on the CPU")
    parser.add_argument("--shard", metavar="I/N", help="only part I of N: several machines, or a SLURM array")
    parser.add_argument("--dry-run", action="store_true", help="list what would be done, with commands, and stop")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seeds {text}: expected whole numbers from 0")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs {text}: expected at least 1")
    return int(text)


def _say(line: str) -> None:
    print(line, flush=True)


def _list(cells: Sequence[grid.Cell], root: Path) -> None:
    """Print what is to be done of the cells, with commands; those that are done are counted only."""
    to_do = [cell for cell in cells if row_of_cell(cell, root) is None]
    for cell in to_do:
        print(f"{cell.key}  {grid.described(cell)}")
        for command in cell.commands:
            print(f"  {command}")
    networks = len({cell.key for cell in to_do if not is_trained(cell, root)})
    print(f"{len(to_do)} cells, {networks} networks to train; {len(cells) - len(to_do)} cells are there")


def _without_row(experiment: Experiment, cells: Sequence[grid.Cell], options: argparse.Namespace) -> list[grid.Cell]:
    """Return the cells that have no row yet, wherever the others were run."""
    rows = by_command(read(rows_file(experiment, options.scale, _results(options))))
    return [cell for cell in cells if found(cell, rows) is None]


def _results(options: argparse.Namespace) -> Path:
    return options.results or options.runs / "results"


def _made(folder: Path, option: str) -> None:
    """Make a folder that is written into, if it is not there.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot make the folder {folder}: {error.strerror}; choose another") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: cannot write into the folder {folder}; choose another")


def _keep(cell: grid.Cell, root: Path, path: Path) -> None:
    """Write the row of a cell; if that cannot be done now, say so: the end of the run does it again."""
    try:
        collect([cell], root, path)
    except UserError as error:
        print(f"its row is written at the end, now it cannot be: {error}", file=sys.stderr, flush=True)
    except Exception:  # noqa: BLE001 - of a row, or of a bug: hours of other cells must not be lost for it
        traceback.print_exc(file=sys.stderr)


def _render_all(experiments: Sequence[Experiment], options: argparse.Namespace) -> dict[str, Exception]:
    """Render what can be rendered; return by experiment why it cannot be."""
    errors: dict[str, Exception] = {}
    for one in experiments:
        try:
            page = _render(one, options)
        except UserError as error:
            errors[one.name] = error
        except Exception as error:  # noqa: BLE001 - a bug in one page must not cost the others
            traceback.print_exc(file=sys.stderr)
            errors[one.name] = error
        else:
            print(page, flush=True)
    return errors


def _render(experiment: Experiment, options: argparse.Namespace) -> Path:
    """Write the rows of the cells that are done, then the page, of all seeds; return its path."""
    results = _results(options)
    path = rows_file(experiment, options.scale, results)
    seeds = dict.fromkeys([*own_seeds(experiment, options.scale), *(options.seeds or ())])
    _made(path.parent, "--results")
    collect(grid.cells(experiment, options.scale, list(seeds)), options.runs / "cells", path)
    pages = path.parent / ".pages"  # for its lock only: drawing takes seconds, in which others keep rows
    pages.mkdir(exist_ok=True)
    with held(pages, 600):
        return report(experiment, options.scale, results)


def _complain(failed: Sequence[Result], unrendered: Mapping[str, Exception]) -> None:
    """Raise what could not be done, all of it in one; nothing where all was.

    Raises:
        UserError: only pages are missing, by mistakes of the user.
        CellsFailed: else.
    """
    named: dict[str, list[str]] = {}
    for result in failed:
        named.setdefault(str(result.error), []).append(
            f"{' '.join(result.cell.labels.values())} seed {result.cell.seed}"
        )
    cells = [f"{one[0]}{f' and {len(one) - 1} more' if len(one) > 1 else ''}: {error}" for error, one in named.items()]
    pages = [f"{name} is not rendered: {_reason(error)}" for name, error in unrendered.items()]
    if pages and not cells and all(isinstance(error, UserError) for error in unrendered.values()):
        raise UserError("; ".join(pages))
    if cells or pages:
        raise CellsFailed("; ".join([*cells, *pages]))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": run_command,
    "report": report_command,
    "adopt": adopt_command,
    "polytope": polytope_command,
    "sweep": sweep_command,
    "overview": overview_command,
}


def main(arguments: Sequence[str]) -> None:
    """Dispatch to a command, or list them.

    Raises:
        UserError: no such command.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {(command.__doc__ or '').partition(chr(10))[0]}" for name, command in COMMANDS.items()]
        print("\n".join(["python -m expressive_losses.experiments COMMAND ...; each knows --help", "", *lines]))
        return
    if not arguments or arguments[0] not in COMMANDS:
        raise UserError(f"expected one of: {', '.join(COMMANDS)}; each knows --help")
    COMMANDS[arguments[0]](arguments[1:])
