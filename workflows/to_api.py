"""UI workflows to the API format that POST /prompt takes: `python workflows/to_api.py http://127.0.0.1:8188`.

The server is asked for its nodes' definitions, since a UI file keeps widget values by position only.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UI = HERE.parent / "example_workflows"
NOTES = {"Note", "MarkdownNote"}  # they exist in the browser only
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_api(ui: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """`ui` is a workflow as the browser saves it, `definitions` the answer of /object_info."""
    source = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    api = {}
    for node in ui["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = dict(zip(_widgets(definitions[node["type"]]), node["widgets_values"]))
        inputs = {name: value for name, value in inputs.items() if not name.startswith("control ")}
        inputs |= {slot["name"]: source[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        title = node.get("title") or definitions[node["type"]]["display_name"]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return api


def _widgets(definition: dict[str, Any]) -> list[str]:
    """The names of a node's widgets in the order of its values; the browser's own are named "control ..."."""
    names = []
    for group in ("required", "optional"):
        for name in definition["input_order"].get(group, []):
            kind, *options = definition["input"][group][name]
            if not (isinstance(kind, list) or kind in WIDGETS):
                continue
            names.append(name)
            if options and options[0].get("control_after_generate"):
                names.append(f"control of {name}")
            if options and options[0].get("image_upload"):
                names.append(f"control of {name}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", nargs="?", default="http://127.0.0.1:8188", help="a running ComfyUI with the pack")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.server}/object_info") as answer:
        definitions = json.load(answer)
    for path in sorted(UI.glob("*.json")):
        api = to_api(json.loads(path.read_text()), definitions)
        target = HERE / "api" / path.name
        target.write_text(json.dumps(api, indent=1, ensure_ascii=False) + "\n")
        print(f"{target}: {len(api)} nodes")


if __name__ == "__main__":
    main()
