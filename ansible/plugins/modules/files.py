#!/usr/bin/python
"""Many small files and their folders in one task."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text

DOCUMENTATION = r"""
module: files
short_description: Folders and files with their contents, owners and modes, in one task
description:
  - What the modules file, copy and template do in a task for each, done in one for all files of a role. A run
    that changes nothing then asks the host once instead of twice a file.
  - A file is written beside and renamed, with its owner and mode already right, so that nobody sees half of
    it or reads it in between. With C(--diff) it shows what differs.
options:
  folders:
    type: list
    elements: dict
    default: []
    description: "Folders, outer before inner: C(path), and C(owner), C(group) (root), C(mode) (0755)."
  files:
    type: list
    elements: dict
    default: []
    description:
      - "Files: C(dest), C(content) or, for what is no text, C(base64),"
      - "and C(owner), C(group) (root), C(mode) (0644)."
  only:
    type: list
    elements: path
    default: []
    description: "Folders with the files named here and no other: what else lies there is removed."
  test:
    type: dict
    description:
      - "C(root) and C(command): before anything is written, the command is run, with C(%s) in it being a"
      - "copy of the folder C(root) in which all is as it would be. When it fails, nothing is touched."
      - "A program that is not installed yet tests nothing."
author: ["Carillon"]
"""

EXAMPLES = r"""
- carillon.carillon.files:
    folders: [{path: /etc/carillon/secrets, group: carillon, mode: "0750"}]
    files: [{dest: /etc/carillon/secrets/secret-key, content: "{{ secret }}", group: carillon, mode: "0640"}]
"""

RETURN = r"""
written: {type: list, returned: always, description: "Paths made, written, given another mode or removed."}
"""


def attributes(module: AnsibleModule, path: str, entry: dict, mode: str) -> dict:
    return module.load_file_common_arguments(
        {
            "path": path,
            "owner": entry.get("owner", "root"),
            "group": entry.get("group", "root"),
            "mode": entry.get("mode", mode),
            "seuser": None,
            "serole": None,
            "setype": None,
            "selevel": None,
            "attributes": None,
        },
        path=path,
    )


def folder(module: AnsibleModule, entry: dict) -> bool:
    path = entry["path"]
    made = not os.path.isdir(path)
    if made and module.check_mode:
        return True
    if made:
        os.mkdir(path, 0o700)
    return module.set_fs_attributes_if_different(attributes(module, path, entry, "0755"), made)


def content_of(entry: dict) -> bytes:
    return base64.b64decode(entry["base64"]) if "base64" in entry else to_bytes(entry["content"])


def surplus(folders: list[str], files: list[dict]) -> list[str]:
    """Files in those folders that are none of `files`."""
    named = {entry["dest"] for entry in files}
    found = []
    for path in folders:
        if os.path.isdir(path):
            there = (os.path.join(path, name) for name in sorted(os.listdir(path)))
            found += [name for name in there if name not in named and not os.path.isdir(name)]
    return found


def differs(entry: dict) -> bool:
    try:
        with open(entry["dest"], "rb") as opened:
            return opened.read() != content_of(entry)
    except FileNotFoundError:
        return True


def refused(test: dict, files: list[dict], gone: list[str]) -> str:
    """What the command says against the files as they would be; empty when it takes them."""
    program = test["command"][0]
    if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", "")) is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="carillon-test-") as folder:
        copy = os.path.join(folder, "root")
        if os.path.isdir(test["root"]):
            shutil.copytree(test["root"], copy, symlinks=True)
        for path in gone:
            if not os.path.relpath(path, test["root"]).startswith(".."):
                os.unlink(os.path.join(copy, os.path.relpath(path, test["root"])))
        for entry in files:
            relative = os.path.relpath(entry["dest"], test["root"])
            if relative.startswith(".."):
                continue
            target = os.path.join(copy, relative)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as opened:
                opened.write(content_of(entry))
        done = subprocess.run(
            [word.replace("%s", copy) for word in test["command"]],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", "")},
        )
        return "" if done.returncode == 0 else (done.stdout + done.stderr).replace(copy, test["root"]).strip()


def file(module: AnsibleModule, entry: dict, diffs: list) -> bool:
    path = entry["dest"]
    content = content_of(entry)
    try:
        with open(path, "rb") as opened:
            before = opened.read()
    except FileNotFoundError:
        before = None
    differs = before != content
    if differs:
        diffs.append(
            {
                "before_header": path,
                "after_header": path,
                "before": to_text(before or b"", errors="replace"),
                "after": to_text(content, errors="replace"),
            }
        )
        if module.check_mode:
            return True
        # mkstemp makes it 0600: whatever the mode will be, nobody reads it before it is right.
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".carillon-")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content)
            module.set_fs_attributes_if_different(attributes(module, temporary, entry, "0644"), False)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return module.set_fs_attributes_if_different(attributes(module, path, entry, "0644"), differs)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "dict", "default": []},
            "files": {"type": "list", "elements": "dict", "default": []},
            "only": {"type": "list", "elements": "path", "default": []},
            "test": {
                "type": "dict",
                "options": {
                    "root": {"type": "path", "required": True},
                    "command": {"type": "list", "elements": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    written: list[str] = []
    diffs: list[dict] = []
    at = ""
    files, test = module.params["files"], module.params["test"]
    gone = surplus(module.params["only"], files)
    try:
        if test and (gone or any(differs(entry) for entry in files)):
            at = test["root"]
            if said := refused(test, files, gone):
                module.fail_json(msg=f"nothing was written, because it would be refused: {said}")
        for entry in module.params["folders"]:
            at = entry["path"]
            if folder(module, entry):
                written.append(at)
        for entry in files:
            at = entry["dest"]
            if file(module, entry, diffs):
                written.append(at)
        for at in gone:
            if not module.check_mode:
                os.unlink(at)
            written.append(at)
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"{at}: {error!r}")
    module.exit_json(changed=bool(written), written=written, diff=diffs)


if __name__ == "__main__":
    main()
