"""A stand-in for gh, the command of GitHub: the few commands that the examples use, on a file in place of GitHub.

It takes what gh's manual says of them and nothing else. ``--jq`` is run by jq. A command that the token has no
permission for ends as gh does: with 1 and the API's words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ["STAND_IN_STATE"])
PERMISSIONS = json.loads(os.environ["STAND_IN_PERMISSIONS"])
BOT = {"login": "github-actions[bot]"}


def main() -> None:
    state = (
        json.loads(STATE.read_text()) if STATE.exists() else {"comments": [], "issues": [], "labels": [], "calls": []}
    )
    state["calls"].append(sys.argv[1:])
    if not os.environ.get("GH_TOKEN"):
        fail("gh: To use GitHub CLI in a GitHub Actions workflow, set the GH_TOKEN environment variable.", 4)
    parser = argparse.ArgumentParser(prog="gh", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    api = commands.add_parser("api", allow_abbrev=False)
    api.add_argument("endpoint")
    api.add_argument("-X", "--method", default=None)
    api.add_argument("-F", "--field", action="append", default=[])
    api.add_argument("-q", "--jq")
    api.add_argument("--paginate", action="store_true")
    api.add_argument("--silent", action="store_true")
    issue = commands.add_parser("issue", allow_abbrev=False).add_subparsers(dest="what", required=True)
    listed = issue.add_parser("list", allow_abbrev=False)
    listed.add_argument("--label", action="append")
    listed.add_argument("--state", choices=["open", "closed", "all"], default="open")
    listed.add_argument("--limit", type=int, default=30)
    listed.add_argument("--json", required=True)
    listed.add_argument("-q", "--jq")
    made = issue.add_parser("create", allow_abbrev=False)
    made.add_argument("--title", required=True)
    made.add_argument("--label", action="append")
    edited = issue.add_parser("edit", allow_abbrev=False)
    edited.add_argument("number", type=int)
    for each in (made, edited):
        each.add_argument("-F", "--body-file", required=True)
    label = commands.add_parser("label", allow_abbrev=False).add_subparsers(dest="what", required=True)
    label_made = label.add_parser("create", allow_abbrev=False)
    label_made.add_argument("name")
    label_made.add_argument("--description")
    label_made.add_argument("--force", action="store_true")
    given = parser.parse_args()
    globals()["_".join(filter(None, [given.command, getattr(given, "what", None)]))](given, state)
    STATE.write_text(json.dumps(state))


def fail(said: str, status: int = 1) -> None:
    sys.stderr.write(said + "\n")
    sys.exit(status)


def need(*names: str) -> None:
    if not any(PERMISSIONS.get(name) == "write" for name in names):
        fail("gh: Resource not accessible by integration (HTTP 403)")


def tell(found: Any, jq: str | None) -> None:
    text = json.dumps(found)
    if jq is not None:
        ran = subprocess.run(["jq", "-r", jq], input=text, capture_output=True, text=True, check=False)
        if ran.returncode:
            fail(ran.stderr)
        text = ran.stdout.rstrip("\n")
    if text:
        sys.stdout.write(text + "\n")


def api(given: argparse.Namespace, state: dict[str, Any]) -> None:
    path, _, _ = given.endpoint.partition("?")
    parts = path.strip("/").split("/")
    if parts[0] != "repos" or "/".join(parts[1:3]) != os.environ["GITHUB_REPOSITORY"] or parts[3] != "issues":
        fail("gh: Not Found (HTTP 404)")
    need("pull-requests", "issues")
    # With fields and no method, gh posts. A value that begins with @ is read from a file.
    fields = dict(each.split("=", 1) for each in given.field)
    fields = {name: Path(value[1:]).read_text() if value.startswith("@") else value for name, value in fields.items()}
    method = given.method or ("POST" if fields else "GET")
    match method, parts[4:]:
        case "GET", [number, "comments"]:
            found: Any = [each for each in state["comments"] if each["issue"] == int(number)]
        case "POST", [number, "comments"]:
            found = {"id": 1000 + len(state["comments"]), "issue": int(number), "user": BOT, "body": fields["body"]}
            state["comments"].append(found)
        case "PATCH", ["comments", number]:
            there = [each for each in state["comments"] if each["id"] == int(number)]
            if not there:
                fail("gh: Not Found (HTTP 404)")
            found = there[0]
            found["body"] = fields["body"]
        case _:
            fail(f"gh: {method} {path}: Not Found (HTTP 404)")
    if not given.silent:
        tell(found, given.jq)


def issue_list(given: argparse.Namespace, state: dict[str, Any]) -> None:
    wanted = set(given.label or [])
    found = [
        each for each in state["issues"] if wanted <= set(each["labels"]) and given.state in {each["state"], "all"}
    ]
    names = given.json.split(",")
    tell([{name: each[name] for name in names} for each in found[: given.limit]], given.jq)


def issue_create(given: argparse.Namespace, state: dict[str, Any]) -> None:
    need("issues")
    if unknown := set(given.label or []) - set(state["labels"]):
        fail(f"could not add label: '{unknown.pop()}' not found")
    number = 1 + len(state["issues"])
    body = Path(given.body_file).read_text()
    state["issues"].append(
        {"number": number, "title": given.title, "labels": given.label, "state": "open", "body": body}
    )
    tell(f"https://github.com/{os.environ['GITHUB_REPOSITORY']}/issues/{number}", None)


def issue_edit(given: argparse.Namespace, state: dict[str, Any]) -> None:
    need("issues")
    there = [each for each in state["issues"] if each["number"] == given.number]
    if not there:
        fail(f"GraphQL: Could not resolve to an issue or pull request with the number of {given.number}.")
    there[0]["body"] = Path(given.body_file).read_text()


def label_create(given: argparse.Namespace, state: dict[str, Any]) -> None:
    need("issues", "pull-requests")
    if given.name in state["labels"] and not given.force:
        fail(f'label with name "{given.name}" already exists; use `--force` to update its color and description')
    state["labels"] = sorted({*state["labels"], given.name})


if __name__ == "__main__":
    main()
