"""Tools for what verify.py wrote: check, merge, export, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from expressive_losses.cli.arguments import Parser, add_subject_arguments, path, positive
from expressive_losses.cli.subject import import_plugins, subject_of
from expressive_losses.verify import build_stages, table_of
from expressive_losses.verify.check import check, disjoint
from expressive_losses.verify.check_radius import check_radii
from expressive_losses.verify.export import export
from expressive_losses.verify.ledger import Ledger
from expressive_losses.verify.merge import merge, merge_radii
from expressive_losses.verify.radius import RadiusLedger, radius_table
from expressive_losses.verify.report import write_report

LEDGER, RADII = Ledger.file_name, RadiusLedger.file_name


def check_tool(arguments: Sequence[str]) -> None:
    """Evaluate every row of a ledger or of certified radii again, in float64, on the plain network; fail on a
    contradiction."""
    parser = _parser("check", check_tool.__doc__)
    parser.add_argument("ledgers", nargs="+", type=path, metavar="FOLDER", help="folders of ledgers")
    add_subject_arguments(parser)
    parser.add_argument("--bounds", action="store_true", help="also derive every proof again, in float64")
    parser.add_argument("--attack", metavar="STAGES", help="also attack the verified images, e.g. pgd")
    options = parser.parse_args(arguments)
    import_plugins(options)
    subject, data = subject_of(options)
    attacks = [stage for stage in build_stages(options.attack) if stage.kind == "attack"] if options.attack else []
    question, how = (subject.network, data.images, data.labels), {"bounds": options.bounds, "attacks": attacks}
    ledgers = []
    for folder in options.ledgers:
        radii = (folder / RADII).exists()
        if radii:
            print(f"{folder / RADII}: {check_radii(folder, *question, **how)}")
        if not radii or (folder / LEDGER).exists():
            print(f"{folder}: {check(folder, *question, **how)}")
            ledgers.append(folder)
    if len(ledgers) > 1 and (pairs := disjoint(ledgers)):
        print(f"{pairs} pairs of ledgers do not contradict one another")


def merge_tool(arguments: Sequence[str]) -> None:
    """Join the ledgers of all shards of one run, or their radii; refuses gaps and overlaps."""
    parser = _parser("merge", merge_tool.__doc__)
    parser.add_argument("shards", nargs="+", type=path, metavar="FOLDER", help="folders of the shards' ledgers")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder of the joined ledger")
    options = parser.parse_args(arguments)
    radii, ledgers = (any((one / name).exists() for one in options.shards) for name in (RADII, LEDGER))
    if radii:
        print(radius_table(merge_radii(options.shards, options.out)))
    if ledgers or not radii:
        print(table_of(merge(options.shards, options.out)))


def export_tool(arguments: Sequence[str]) -> None:
    """Write the network as ONNX and the question about each image as VNN-LIB, for other verifiers."""
    parser = _parser("export", export_tool.__doc__)
    add_subject_arguments(parser)
    parser.add_argument("--eps", help="radius in pixel units; default: the one trained for")
    parser.add_argument("--first", type=positive, default=None, metavar="N", help="only the first N images")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds an image, for instances.csv")
    parser.add_argument("--out", type=path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    import_plugins(options)
    subject, data = subject_of(options)
    eps = subject.eps(options.eps)
    indices = range(len(data.images))[: options.first]
    instances = export(
        subject.network, data.images, data.labels, float(eps), options.out, indices=indices, timeout=options.timeout
    )
    print(f"{len(indices)} properties at eps {eps.text}: {instances}")


def report_tool(arguments: Sequence[str]) -> None:
    """Write report.html and report.md about a ledger; with --model also its layers and counterexamples."""
    parser = _parser("report", report_tool.__doc__)
    parser.add_argument("ledger", type=path, metavar="FOLDER", help="folder of the ledger")
    add_subject_arguments(parser)
    parser.add_argument("--out", type=path, metavar="DIR", help="default: beside the ledger")
    options = parser.parse_args(arguments)
    import_plugins(options)
    if options.model is None:
        print(write_report(options.ledger, out=options.out))
        return
    subject, data = subject_of(options)
    print(write_report(options.ledger, subject.network, data.images, data.labels, options.out))


def _parser(name: str, description: str | None) -> Parser:
    return Parser(f"verify.py {name}", description)


TOOLS: dict[str, Callable[[Sequence[str]], None]] = {
    "check": check_tool,
    "merge": merge_tool,
    "export": export_tool,
    "report": report_tool,
}
