"""Reports the duplicates of a set: counts, lists, and a page to read."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

from input_pipeline.prepared import leaks
from input_pipeline.sources import CLASSES, SPLITS

SHOWN = 40  # pairs in the readable page; the JSON holds all


@dataclasses.dataclass(frozen=True)
class Picture:
    """A readable picture of the set. `split` is one of SPLITS; `label` 0 fake, 1 real."""

    id: str
    split: str
    label: int
    group: str | None


def copies_elsewhere(
    pictures: Sequence[Picture], duplicates: leaks.Duplicates
) -> dict[int, set[str]]:
    """Position of a picture → the other splits with a copy of it; only pictures with copies."""
    elsewhere = defaultdict(set)
    for left, right in duplicates.linked():
        splits = [{pictures[i].split for i in group} for group in (left, right)]
        for group, others in ((left, splits[1]), (right, splits[0])):
            for i in group:
                if others - {pictures[i].split}:
                    elsewhere[i] |= others - {pictures[i].split}
    return dict(elsewhere)


def report(
    pictures: Sequence[Picture],
    duplicates: leaks.Duplicates,
    *,
    unreadable: Sequence[tuple[str, str]],
    dropped: bool,
) -> dict:
    """All that was found, as JSON values.

    Args:
        unreadable: (id, reason) of the files left out.
        dropped: whether the training copies are left out of the prepared set.
    """
    elsewhere = copies_elsewhere(pictures, duplicates)
    training_copies = sorted(pictures[i].id for i in elsewhere if pictures[i].split == "Train")
    size = Counter(p.split for p in pictures)
    across = [
        {"split": split, "copy_in": other, "pictures": count, "share": count / size[split]}
        for split in SPLITS
        for other in SPLITS
        if (count := sum(pictures[i].split == split and other in o for i, o in elsewhere.items()))
    ]
    groups = defaultdict(set)
    for picture in pictures:
        if picture.group:
            groups[picture.group].add(picture.split)
    near = [
        {
            "a": pictures[left].id,
            "b": pictures[right].id,
            "across_splits": pictures[left].split != pictures[right].split,
            "across_classes": pictures[left].label != pictures[right].label,
            "bits": int(bits),
            "correlation": round(float(correlation), 4),
        }
        for (left, right), bits, correlation in zip(
            duplicates.near.tolist(), duplicates.distance, duplicates.correlation, strict=True
        )
    ]
    classes = [{pictures[i].label for i in group} for group in duplicates.exact]
    return {
        "pictures": {
            split: {
                name.lower(): sum(p.split == split and p.label == label for p in pictures)
                for label, name in enumerate(CLASSES)
            }
            for split in SPLITS
            if size[split]
        },
        "near_means": {
            "hash_bits_at_most": leaks.MAX_DISTANCE,
            "correlation_at_least": leaks.MIN_CORRELATION,
        },
        "across_splits": across,
        "within_splits": {
            split: {
                "exact_repeats": sum(
                    max(0, sum(pictures[i].split == split for i in group) - 1)
                    for group in duplicates.exact
                ),
                "near_pairs": sum(
                    pictures[left].split == pictures[right].split == split
                    for left, right in duplicates.near.tolist()
                ),
            }
            for split in SPLITS
            if size[split]
        },
        "exact_with_both_labels": sum(len(labels) > 1 for labels in classes),
        "groups_in_several_splits": sorted(g for g, where in groups.items() if len(where) > 1),
        "too_flat_to_compare": len(duplicates.flat),
        "dropped": training_copies if dropped else [],
        "unreadable": [{"id": name, "reason": reason} for name, reason in unreadable],
        "exact": [
            {
                "ids": [pictures[i].id for i in group],
                "across_splits": len({pictures[i].split for i in group}) > 1,
            }
            for group in duplicates.exact
        ],
        "near": near,
    }


def page(facts: dict) -> str:
    """`report` as Markdown for a person."""
    lines = ["# Copies, leaks and unreadable files", ""]
    lines += [
        "| split | fake | real | exact repeats | near pairs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, count in facts["pictures"].items():
        within = facts["within_splits"][split]
        lines.append(
            f"| {split} | {count['fake']:,} | {count['real']:,} "
            f"| {within['exact_repeats']:,} | {within['near_pairs']:,} |"
        )
    lines += ["", "## Across splits", ""]
    if facts["across_splits"]:
        lines += ["| of | have a copy in | pictures | share |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['split']} | {row['copy_in']} | {row['pictures']:,} | {row['share']:.2%} |"
            for row in facts["across_splits"]
        ]
    else:
        lines.append("No picture of one split was found in another.")
    lines += [
        "",
        "A Test or Validation picture that is also in Train is recognised rather than judged, so "
        "figures on that split come out too good, by up to the share above. `--drop_leaks` leaves "
        "the training copies out; Validation and Test stay whole and so stay comparable.",
        "",
        _dropped_line(facts),
        "",
        "## What counts as a copy",
        "",
        "Exact: the same bytes. Near: perceptual hashes at most "
        f"{facts['near_means']['hash_bits_at_most']} of 64 bits apart and thumbnails correlated "
        f"at least {facts['near_means']['correlation_at_least']}: the same photograph stored anew, "
        "or the next frame of a video. A face swap that changed little is a near copy of its own "
        "original; inside one split that is the task, not a leak. Not found: mirrored or strongly "
        "cropped copies, and the same person in another picture.",
        "",
        f"- Pictures too flat to compare (only exact copies were looked for): "
        f"{facts['too_flat_to_compare']:,}",
        f"- Files that stand under both labels: {facts['exact_with_both_labels']:,}",
        f"- Groups (source videos) in more than one split: "
        f"{len(facts['groups_in_several_splits']):,}",
        f"- Unreadable files, left out: {len(facts['unreadable']):,}",
    ]
    lines += [f"  - `{row['id']}`: {row['reason']}" for row in facts["unreadable"]]
    same = [row["ids"] for row in facts["exact"] if row["across_splits"]]
    if same:
        lines += ["", f"## One file in several splits ({len(same):,})", ""]
        lines += [f"- {', '.join(ids)}" for ids in same[:SHOWN]]
    alike = [row for row in facts["near"] if row["across_splits"]]
    if alike:
        alike.sort(key=lambda row: -row["correlation"])
        lines += ["", f"## Near pairs across splits ({len(alike):,}, most alike first)", ""]
        lines += ["| picture | copy | bits | correlation |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['a']} | {row['b']} | {row['bits']} | {row['correlation']:.3f} |"
            for row in alike[:SHOWN]
        ]
    lines += ["", "Every pair and group is in leaks.json.", ""]
    return "\n".join(lines)


def _dropped_line(facts: dict) -> str:
    copies = len(facts["dropped"])
    if copies:
        return f"**{copies:,} training copies were left out of this set.**"
    if any(row["split"] == "Train" for row in facts["across_splits"]):
        return "**Nothing was left out of this set.**"
    return "There was nothing to leave out."
