#!/usr/bin/python
"""Many small files and their folders in one task."""

from __future__ import annotations

import base64
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text

DOCUMENTATION = r"""
module: carillon_files
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
author: ["Carillon"]
"""

EXAMPLES = r"""
- carillon_files:
    folders: [{path: /etc/carillon/secrets, group: carillon, mode: "0750"}]
    files: [{dest: /etc/carillon/secrets/secret-key, content: "{{ secret }}", group: carillon, mode: "0640"}]
"""

RETURN = r"""
written: {type: list, returned: always, description: "Paths that were made, written or given another mode."}
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


def file(module: AnsibleModule, entry: dict, diffs: list) -> bool:
    path = entry["dest"]
    content = base64.b64decode(entry["base64"]) if "base64" in entry else to_bytes(entry["content"])
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
        },
        supports_check_mode=True,
    )
    written: list[str] = []
    diffs: list[dict] = []
    at = ""
    try:
        for entry in module.params["folders"]:
            at = entry["path"]
            if folder(module, entry):
                written.append(at)
        for entry in module.params["files"]:
            at = entry["dest"]
            if file(module, entry, diffs):
                written.append(at)
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"{at}: {error!r}")
    module.exit_json(changed=bool(written), written=written, diff=diffs)


if __name__ == "__main__":
    main()
