"""The results as a table for the console, and as the section `Results` of docs/gpu.md."""

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
MARK = "## Results\n"
TITLES = {
    "goldens": "The original's numbers",
    "full_size": "Training at full size",
    "chat": "The chat at 13B",
    "processes": "Runs, processes and fp16",
    "faster": "What is fastest",
}


def page(results: dict) -> str:
    """docs/gpu.md with these results."""
    return PAGE.read_text().split(MARK)[0] + MARK + report(results)


def report(results: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    memory = f", {results['memory_gib']} GiB" if "memory_gib" in results else ""
    small = " Tiny sizes: the figures mean nothing." if results["small"] else ""
    lines = ["", f"{results['date']}, {results.get('card', 'no card')}{memory}; {versions}.{small}"]
    for name, part in results["parts"].items():
        why = f": {part['why']}" if "why" in part else ""
        seconds = f"{part['seconds']:.0f} s of {part['limit']}"
        lines += ["", f"### {TITLES[name]}", "", f"{part['outcome']}{why}; {seconds}.", ""]
        keys = list(dict.fromkeys(key for row in part["rows"] for key in row.get("values", {})))
        lines += [line(["", "outcome", *(key.replace("_", " ") for key in keys)]), "|---" * (len(keys) + 2) + "|"]
        for row in part["rows"]:
            outcome = f"{row['outcome']}: {row['why']}" if "why" in row else row["outcome"]
            lines.append(line([row["what"], outcome, *(shown(row.get("values", {}).get(key, "")) for key in keys)]))
    return "\n".join(lines) + "\n"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(results: dict) -> str:
    """A line for each measurement, for the console."""
    lines = []
    for name, part in results["parts"].items():
        why = f" ({part['why']})" if "why" in part else ""
        lines.append(f"{name}: {part['outcome']}, {part['seconds']:.0f} s{why}")
        for row in part["rows"]:
            values = ", ".join(f"{key} {shown(value)}" for key, value in row.get("values", {}).items())
            said = "; ".join(filter(None, [row.get("why", ""), values]))
            lines.append(f"  {row['outcome']:8} {row['what']:30} {said}")
    return "\n".join(lines)
