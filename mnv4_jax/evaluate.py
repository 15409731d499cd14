"""Evaluates a detector: python -m mnv4_jax.evaluate --data=DIR --out=DIR [--checkpoint=DIR]

Writes report.html for people and report.json for programs. Several --data make a cross-dataset
table. Exit status: 0 done, 2 an error that the user can fix.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from input_pipeline import cli, sources
from input_pipeline.cli import UserError
from mnv4_jax.detector import saved
from mnv4_jax.detector.detector import Detector
from mnv4_jax.detector.views import LargestFaces
from mnv4_jax.report import one_class
from mnv4_jax.report.judge import AttackPlan, judge, run_facts
from mnv4_jax.runtime import memory, processes
from mnv4_jax.runtime.line_file import finite


def main() -> None:
    args = parse(sys.argv[1:])
    memory.keep_freed()
    processes.initialize_from(args)
    opened = [(data, sources.open_source(data, args.split, one_class=True)) for data in args.data]
    for data, source in opened:
        if jax.process_index() == 0:
            print(f"{data or 'demo set'}, {args.split}: {sources.describe(source)}", flush=True)
        _ = source.groups, getattr(source, "columns", None)  # finds mistakes early
        if args.attack:
            one_class.check_attackable(f"{data or 'demo set'} {args.split}", source.labels)
    if args.faces:
        opened = [(data, LargestFaces(source)) for data, source in opened]
    elif args.checkpoint is None and jax.process_index() == 0:
        print("pictures are scored as they are: --faces cuts out the largest face, as predict does")
    detector = Detector(args.checkpoint, raw=args.raw)
    out = pathlib.Path(args.out).expanduser()
    if jax.process_index() == 0:
        _make_folder(out)

    attack = _attack_plan(args, detector)
    results = [
        judge(detector, data, source, args.split, args.robustness, attack)
        for data, source in opened
    ]
    if jax.process_index() != 0:
        return
    from mnv4_jax.report import page  # imports matplotlib and jinja2, not needed by other processes

    facts = run_facts(detector, raw=args.raw)
    others = {"other_data_sets": [result.summary for result in results[1:]]}
    contents = json.dumps(finite(facts | results[0].summary | others), indent=2)
    (out / "report.json").write_text(contents + "\n")
    html = page.render(facts, results, detector)
    # File names need not be UTF-8.
    (out / "report.html").write_text(html, encoding="utf-8", errors="replace")
    for result in results:
        _print_summary(result.summary)
    print(f"report: {out / 'report.html'}, {out / 'report.json'}")


def parse(argv: Sequence[str]):
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.evaluate", description=__doc__.split("\n", 2)[2]
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a workdir, or one checkpoint in it; default: the detector in the box",
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DIR",
        help="image folder or prepared set; may be repeated; empty (--data=): the demo set",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--split", default="Test", help="Train, Validation or Test (default)")
    parser.add_argument(
        "--faces",
        action="store_true",
        help="score the largest face of each picture; one without a face counts as unreadable",
    )
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument(
        "--robustness",
        type=int,
        default=100,
        metavar="N",
        help="how many pictures to damage in every way (default 100; 0: none)",
    )
    group = parser.add_argument_group("attacks: pictures changed so that the answer is wrong")
    group.add_argument(
        "--attack", default="", metavar="1,2,4,8", help="how far a pixel may move, in 255ths"
    )
    group.add_argument(
        "--attack_pictures", type=int, default=64, metavar="N", help="how many to attack (64)"
    )
    group.add_argument(
        "--attack_steps", type=int, default=20, metavar="N", help="gradients an attack takes (20)"
    )
    group.add_argument(
        "--attack_transfer", default="", metavar="DIR", help="also by this checkpoint's gradients"
    )
    processes.add_flags(parser)
    args = parser.parse_args(argv)
    args.split = args.split.capitalize()
    if args.split not in sources.SPLITS:
        parser.error(f"--split={args.split}: must be one of {', '.join(sources.SPLITS)}")
    if args.robustness < 0:
        parser.error(f"--robustness={args.robustness}: must be 0 or more")
    args.attack = _budgets(parser, args.attack)
    for name in ("attack_pictures", "attack_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: must be 1 or more")
    if args.attack_transfer and not args.attack:
        parser.error("--attack_transfer needs --attack, such as --attack=1,2,4,8")
    return args


def _budgets(parser, text: str) -> tuple[int, ...]:
    try:
        budgets = sorted({int(part) for part in text.split(",")}) if text else []
    except ValueError:
        budgets = [0]
    if budgets and not 1 <= budgets[0] <= budgets[-1] <= 255:
        parser.error(f"--attack={text}: whole 255ths from 1 to 255, such as 1,2,4,8")
    return tuple(budgets)


def _attack_plan(args, detector: Detector) -> AttackPlan | None:
    if not args.attack:
        return None
    other = None
    if args.attack_transfer:
        other = Detector.of(saved.load(args.attack_transfer))
        mine, theirs = detector.transform.size, other.transform.size
        if mine != theirs:
            raise UserError(
                f"--attack_transfer={args.attack_transfer}: sees pictures of {theirs} px and"
                f" --checkpoint={detector.path} of {mine} px; both must be equal"
            )
    return AttackPlan(args.attack, args.attack_pictures, args.attack_steps, other)


def _make_folder(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out={out}: is a file, or lies below one; name a folder") from None


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['data']}, {summary['split']}: {summary['n']:,} pictures", end="")
    if summary["unreadable"]:
        print(f" ({len(summary['unreadable'])} more unreadable)", end="")
    if summary["no_score"]:
        print(f" ({len(summary['no_score'])} more too small or of one colour)", end="")
    print()
    _print_attack(summary["attack"])
    present = summary.get("only")
    keys = ("auc", "accuracy", "balanced_accuracy", "eer", "ece")
    if present:
        keys = ("accuracy",)
        print(f"  only {present} pictures: no AUC, no EER, no calibration error")
    for key in keys:
        low, high = summary[key]["ci95"]
        print(f"  {key:18} {summary[key]['value']:.4f}  (95%: {low:.4f} to {high:.4f})")
    if not present:
        return
    what = {"real": "false alarms", "fake": "fakes found"}[present]
    for row in summary["thresholds"]:
        rate = row[one_class.RATE[present]]
        low, high = rate["ci95"]
        at = f"at p_fake ≥ {row['threshold']:.4f}"
        print(f"  {what} {at}: {rate['value']:.2%}  (95%: {low:.2%} to {high:.2%})")


def _print_attack(attack: dict[str, Any] | None) -> None:
    if not attack:
        return
    print(f"  attacked, {attack['n']} pictures, {attack['steps']} steps; fakes alone, the worst:")
    for row in attack["rows"]:
        if row["attack"] in ("none", "worst") and row["on"] == "fakes":
            auc, found = row["auc"]["value"], row["recall_fake"]["value"]
            print(f"    ±{row['budget']}/255: AUC {auc:.3f}, fakes found {found:.1%}")
    for doubt in attack["doubts"]:
        print(f"  do not rely on the attack: {doubt}")


if __name__ == "__main__":
    with processes.exit_promptly():
        cli.run(main)
