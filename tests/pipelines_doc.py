"""docs/pipelines.md, from diffusers and from what our tests run. To write it: python -m tests.pipelines_doc"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path

import diffusers

from candela.families import FAMILIES
from candela.families.generic import pipeline_class, why_not
from tests.tiny_pipelines import MISSING, PIPELINES, VARIANTS

FILE = Path(__file__).parent.parent / "docs" / "pipelines.md"


def text() -> str:
    """The whole page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = {
            name: cls
            for name in sorted(dir(diffusers))
            if "Pipeline" in name and name != "DiffusionPipeline" and (cls := pipeline_class(name))
        }
    reasons = {name: why_not(cls) for name, cls in classes.items()}
    ours = {name: family.name for family in FAMILIES for name in family.pipelines}
    text_to_image = [name for name, reason in reasons.items() if reason is None]
    native = [name for name in text_to_image if name in ours]
    tested = [name for name in text_to_image if name in PIPELINES]
    lacking = [name for name in text_to_image if name in MISSING]
    rest = [name for name in text_to_image if name not in {*native, *tested, *lacking}]
    refused: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        if reason and name not in ours:
            refused[reason.split(" (")[0]].append(name)
    sections = [
        f"""# Which pipelines run

Written by `python -m tests.pipelines_doc`; a test holds it against the code. diffusers {diffusers.__version__} has
{len(classes)} pipelines, {len(text_to_image)} of them make pictures from a text alone: {len(native)} have a family of
their own here, {len(tested)} more run through `families/generic.py` in our tests (and {", ".join(VARIANTS)} as a
variant), {len(lacking)} need a package that those tests do without, {len(rest)} should run but are not tested.

Through `generic.py` the pipeline runs whole, as diffusers has it: one picture at a time, text to image only, its own
defaults and sizes, no preview. A size that it would round is refused. The LATENT is what it hands to its VAE; one
without a VAE, or whose VAE takes more than a latent, gives its pixels as the LATENT, three channels at full size.""",
        _listed("With a family of their own", [f"{name}: {ours[name]}" for name in native]),
        _listed("Through generic.py, tested: the pixels are those of the bare pipeline", tested),
        _listed("Through generic.py, with a package to install", [f"{name}: {MISSING[name]}" for name in lacking]),
        _listed("Through generic.py, not tested", rest),
        "## Refused by name\n\n"
        + "\n".join(
            f"- **{reason}** ({len(names)}): {', '.join(f'`{n}`' for n in names)}" for reason, names in refused.items()
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _listed(title: str, names: list[str]) -> str:
    return f"## {title} ({len(names)})\n\n" + "\n".join(f"- {name}" for name in names)


if __name__ == "__main__":
    FILE.write_text(text())
