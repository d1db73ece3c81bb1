"""The one rendered file: what is refused and in which words, and that Ansible writes the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.front import Front
from dev import project, site_file
from dev.output import Failure
from tests.unit.nginx import tree

TEMPLATE = site_file.TEMPLATE.read_text()


def test_a_host_s_metrics_are_its_own_uwsgi_s():
    routes = " ".join(f"/api/v2/{path}/ 127.0.0.1:8050;" for path in ("metrics", "operations"))
    own = f"map $uri $carillon_uwsgi {{ {routes} default carillon_uwsgi; }}"
    assert own in site_file.render(tree.values("production"), TEMPLATE)
    any_of_them = "map $uri $carillon_uwsgi { default uwsgi:8050; }"
    assert any_of_them in site_file.render(tree.values("development"), TEMPLATE)


@pytest.mark.parametrize("name", tree.NAMES)
def test_committed_values_pass(name):
    assert site_file.check(tree.values(name)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("https.listen", ["eighty"], "'eighty' is not a port, address:port or [address]:port"),
        ("https.listen", ["127.0.0.1:99999"], "'99999' is not a port (1 to 65535)"),
        ("https.listen", [], "must not be empty"),
        ("https.listen", "443", "must be a list"),
        (
            "https.certificate",
            "server.pem",
            "'server.pem' is not an absolute path (letters, digits and . _ / + @ -)",
        ),
        (
            "https.key",
            "/etc/k;return 200",
            "'/etc/k;return 200' is not an absolute path (letters, digits and . _ / + @ -)",
        ),
        ("https.hsts", True, "True is not seconds"),
        ("http.policy", "both", "'both' is not one of serve, redirect"),
        ("http.redirect_port", 0, "0 is not a port (1 to 65535)"),
        (
            "uwsgi",
            ["localhost:8050"],
            "'localhost:8050': localhost may be ::1, where nothing listens; write 127.0.0.1",
        ),
        ("daphne", ["daphne"], "'daphne' is not host:port"),
        ("daphne", ["daphne;:8051"], "'daphne;:8051' is not host:port"),
        ("resolver", "dns", "'dns' is not the address of a DNS server"),
        ("trusted_proxies", ["10.0.0.1/24"], "10.0.0.1/24 has host bits set"),
        (
            "trusted_proxies",
            ["0.0.0.0/0"],
            "'0.0.0.0/0' would let anyone claim any address: name the proxies",
        ),
        ("http2_directive", 1.24, "1.24 is not true or false"),
        ("client_limits", "no", "'no' is not true or false"),
        ("server_names", ["a b"], "'a b' is not a host name or address"),
        ("websocket_prefixes", "/ws/", 'must be a list of paths, such as ["/ws/"]'),
        ("http_prefixes", ["/x"], "'/x' must begin and end with one slash: write '/x/'"),
        ("upload_mebibytes", 0, "must be a whole number from 1 to 8, not 0"),
        ("websocket_prefixes", ["ws/"], "'ws/' must begin and end with one slash: write '/ws/'"),
    ],
)
def test_refused(name, value, words):
    values = tree.values("production")
    target = values
    *path, last = name.split(".")
    for step in path:
        target = target[step]
    target[last] = value
    assert site_file.check(values) == [f"{name}: {words}"]


def test_what_an_older_nginx_and_openssl_do_not_know():
    values = tree.values("production") | {"http2_directive": False, "proxy_protocol": True}
    values["https"]["post_quantum"] = False
    shown = site_file.render(values, TEMPLATE)
    assert "X25519MLKEM768" not in shown
    assert "ssl_ecdh_curve X25519:" in shown
    assert "http2 on" not in shown
    listeners = [line for line in shown.splitlines() if "listen" in line and " ssl" in line]
    assert len(listeners) == 3
    assert all(" ssl http2 " in line for line in listeners)


def test_all_problems_at_once_with_missing_and_unknown_names():
    values = tree.values("production")
    del values["https"]["key"]
    values["https"]["hsst"] = values["https"].pop("hsts")
    assert site_file.check(values) == [
        "https.hsst: no such value (there are listen, certificate, key, hsts, post_quantum)",
        "https.key: missing",
        "https.hsts: missing",
    ]
    assert site_file.check(["a list"])[0].startswith("the file: must be a mapping with server_names, https")


def test_a_resolver_looks_up_one_name():
    values = tree.values("production") | {"resolver": "10.0.0.53"}
    assert site_file.check(values) == [
        "uwsgi: with a resolver there is one name, not 2 (several: resolver: null)"
    ]


def test_a_project_s_prefixes_are_the_only_difference_that_they_make():
    rest = "[A-Za-z0-9._~@:+/-]*$ { include carillon/snippets/websocket.conf; }"
    for name in tree.VALUES:
        without = site_file.render(tree.values(name), TEMPLATE).splitlines()
        declared = site_file.render(tree.values(name + tree.DECLARED), TEMPLATE).splitlines()
        assert declared.count("    client_max_body_size 2m;") == without.count("    client_max_body_size 1m;")
        declared = [line.replace("2m;", "1m;").replace("2 MiB", "1 MiB") for line in declared]
        more = [line for line in declared if line not in without]
        assert [line for line in declared if line not in more] == without
        # Once in each server that has the routes.
        servers = without.count("    include carillon/snippets/routes.conf;")
        prefixes = {
            "/ws/": "websocket",
            "/live/feed-2/": "websocket",
            "/stream/": "http",
            "/live/page/": "http",
        }
        locations = [
            f"    location ~ ^{prefix}{rest.replace('websocket', name)}" for prefix, name in prefixes.items()
        ]
        assert more == locations * servers


@pytest.mark.parametrize("name", ["development", "container"])
def test_what_is_declared_is_in_the_file_of_development_and_containers(name, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "FILE", tmp_path / "carillon.toml")
    site_file.write(tree.VALUES[name], tmp_path / "site.conf")
    assert (tmp_path / "site.conf").read_text() == site_file.render(tree.values(name), TEMPLATE)
    project.FILE.write_text(tree.WORDS)
    site_file.write(tree.VALUES[name], tmp_path / "site.conf")
    assert (tmp_path / "site.conf").read_text() == site_file.render(
        tree.values(name + tree.DECLARED), TEMPLATE
    )


def test_what_cannot_be_declared_and_where_it_is_not_said(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "FILE", tmp_path / "carillon.toml")
    file = tmp_path / "site.yml"
    file.write_text(tree.VALUES["development"].read_text() + "websocket_prefixes: [/ws/]\n")
    with pytest.raises(Failure, match=f"site.yml: websocket_prefixes: say it in {project.FILE}"):
        site_file.write(file, tmp_path / "out")
    project.FILE.write_text('websocket_prefixes = ["/api/ws/"]')
    with pytest.raises(Failure, match=f"{project.FILE}: websocket_prefixes: '/api/ws/' lies in /api/"):
        site_file.write(tree.VALUES["development"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_written_once_then_left_alone(tmp_path):
    output = tmp_path / "nginx" / "site.conf"
    assert site_file.write(tree.VALUES["development"], output) is True
    assert output.stat().st_mode & 0o777 == 0o644
    before = output.stat().st_mtime_ns
    assert site_file.write(tree.VALUES["development"], output) is False
    assert output.stat().st_mtime_ns == before
    assert list(output.parent.iterdir()) == [output]


def test_the_command_says_which_file_and_value(tmp_path, capsys):
    file = tmp_path / "site.yml"
    file.write_text(tree.VALUES["development"].read_text().replace("policy: serve", "policy: open"))
    assert site_file.main([str(file), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"{file}: http.policy: 'open' is not one of serve, redirect\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("[", "not YAML: while parsing"),
        ("server_names: [a]\nwords: 1\n", "words: no such value"),
    ],
)
def test_whatever_is_wrong_ends_the_tool_with_one_line(tmp_path, text, said):
    file = tmp_path / "site.yml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Failure, match=said) as caught:
        site_file.write(file, tmp_path / "out")
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_hosts_have_what_is_declared(tmp_path):
    """The role's own variables, as its tasks read them."""
    role = tree.CHECKOUT / "ansible/roles/nginx"
    (tmp_path / "nginx").symlink_to(tree.NGINX)
    declared = tmp_path / "src/project/carillon.toml"
    declared.parent.mkdir(parents=True)
    declared.write_text(tree.WORDS)
    (tmp_path / "src/project/nginx").mkdir()
    (tmp_path / "src/project/nginx/bells.conf").write_text("location /bells/ { return 204; }")
    (tmp_path / "src/carillon").symlink_to(tree.CHECKOUT / "src/carillon")
    content = "(nginx_files | selectattr('dest', 'equalto', '/etc/nginx/carillon/site.conf') | first).content"
    tasks = [
        {"ansible.builtin.copy": {"content": f"{{{{ {content} }}}}", "dest": f"{tmp_path}/site.conf"}},
        {"ansible.builtin.copy": {"content": "{{ nginx_files | to_json }}", "dest": f"{tmp_path}/files"}},
        {
            "ansible.builtin.copy": {
                "content": "{{ nginx_whole_site | to_json }}",
                "dest": f"{tmp_path}/values",
            }
        },
    ]
    files = [str(role / "defaults/main.yml"), str(role / "vars/main.yml")]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars_files": files}
    (tmp_path / "play.yml").write_text(json.dumps([{**play, "tasks": tasks}]))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "ansible_facts": {"distribution": "Debian", "distribution_major_version": "13"},
        "carillon_domain": "chimes.test",
        "topology_source": str(tmp_path),
        "topology_single": True,
        "topology_upstreams": ["127.0.0.1"],
        "topology_shown": "127.0.0.1",
    }
    subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            f"--extra-vars={json.dumps(variables)}",
            "play.yml",
        ],
        check=True,
        cwd=tmp_path,
        env=os.environ
        | {"ANSIBLE_CONFIG": str(tree.CHECKOUT / "ansible/ansible.cfg"), "ANSIBLE_HOME": str(tmp_path)},
    )
    values = json.loads((tmp_path / "values").read_text())
    assert values["websocket_prefixes"] == ["/ws/", "/live/feed-2/"]
    assert values["http_prefixes"] == ["/stream/", "/live/page/"]
    files = {file["dest"]: file.get("content") for file in json.loads((tmp_path / "files").read_text())}
    assert files["/etc/nginx/carillon/site.d/bells.conf"] == "location /bells/ { return 204; }"
    text = (tmp_path / "site.conf").read_text()
    assert text == site_file.render(values, TEMPLATE)
    assert text.count("    location ~ ^/ws/[A-Za-z0-9._~@:+/-]*$ { include") == 1


@pytest.mark.parametrize("name", tree.NAMES)
def test_ansible_writes_the_same_bytes(name, tmp_path):
    output = tmp_path / "site.conf"
    variables = {"site": tree.values(name), "ansible_python_interpreter": sys.executable}
    subprocess.run(
        [
            Path(sys.executable).with_name("ansible"),
            "localhost",
            "--connection=local",
            "--module-name=template",
            f"--args=src={site_file.TEMPLATE} dest={output}",
            f"--extra-vars={json.dumps(variables)}",
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"ANSIBLE_LOCAL_TEMP": str(tmp_path), "ANSIBLE_HOME": str(tmp_path)},
    )
    assert output.read_text() == site_file.render(tree.values(name), TEMPLATE)


def test_the_benchmark_s_clients_come_from_one_address():
    front = Front(upstream=1, port=2)
    rendered = Path(front._folder.name, "site.conf").read_text()
    front._folder.cleanup()
    assert 'map "" $carillon_client_limits { default 0; }' in rendered


def test_development_and_containers_have_the_project_s_locations(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "LOCATIONS", tmp_path / "theirs")
    there = tmp_path / "site.d"
    assert not project.locations(there)
    assert list(there.iterdir()) == []
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "bells.conf").write_text("location /bells/ { return 204; }")
    (tmp_path / "theirs" / "notes.txt").touch()
    assert project.locations(there)
    assert not project.locations(there)
    (file,) = there.iterdir()
    assert (file.name, file.read_text()) == ("bells.conf", "location /bells/ { return 204; }")
    assert (there.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o755, 0o644)
    (tmp_path / "theirs" / "bells.conf").unlink()
    assert project.locations(there)
    assert list(there.iterdir()) == []
    for name in ("dev", "production"):
        services = yaml.safe_load((tree.CHECKOUT / f"compose/{name}.yml").read_text())["services"]
        mounts = json.dumps(services["nginx"]["volumes"])
        assert "/nginx/site.d" in mounts
        assert "/etc/nginx/carillon/site.d" in mounts
