"""The environment: every problem at once, secrets from files, nothing secret in what it shows."""

from pathlib import Path

import pytest

from carillon.process.environment import NAMES, ConfigurationError, load, parse_file

GOOD = {
    "CARILLON_SECRET_KEY": "k" * 40,
    "CARILLON_ALLOWED_HOSTS": "carillon.test",
    "CARILLON_DATABASE_HOST": "db",
    "CARILLON_DATABASE_PASSWORD": "db-secret",
    "CARILLON_AMQP_HOSTS": "mq",
    "CARILLON_AMQP_PASSWORD": "mq-secret",
}


def problems(**changes: str | None) -> list[str]:
    environ = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    return caught.value.problems


def test_defaults():
    environment = load(GOOD)
    assert environment.database_port == 5432
    assert environment.amqp_urls == ["amqp://carillon:mq-secret@mq:5672/carillon"]
    assert environment.bind == "127.0.0.1"
    assert environment.session_cookie_name == "__Host-awx_sessionid"
    assert not environment.development
    assert load({**GOOD, "CARILLON_DEVELOPMENT": "1"}).session_cookie_name == "awx_sessionid"


def test_all_problems_at_once():
    with pytest.raises(ConfigurationError) as caught:
        load({"CARILLON_DATABASE_PORT": "many", "CARILLON_DEVELOPMENT": "yes"})
    named = "\n".join(caught.value.problems)
    for name in (*GOOD, "CARILLON_DATABASE_PORT", "CARILLON_DEVELOPMENT"):
        assert name in named
    assert all("\n" not in line for line in caught.value.problems)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CARILLON_SECRET_KEY", None, "is missing: set it or CARILLON_SECRET_KEY_FILE"),
        ("CARILLON_SECRET_KEY", "short", "shorter than 32"),
        ("CARILLON_ALLOWED_HOSTS", "https://carillon.test", "is not a host name"),
        ("CARILLON_ALLOWED_HOSTS", "carillon.test:443", "is not a host name"),
        ("CARILLON_TRUSTED_ORIGINS", "carillon.test", "is not scheme://host"),
        ("CARILLON_TRUSTED_ORIGINS", "https://carillon.test/", "is not scheme://host"),
        ("CARILLON_DATABASE_PORT", "0", "whole number from 1 to 65535"),
        ("CARILLON_DATABASE_PORT", "٣", "whole number from 1 to 65535"),
        ("CARILLON_AMQP_HOSTS", "mq:0", "is not host or host:port"),
        ("CARILLON_AMQP_TLS_CA", "/nowhere/ca.pem", "does not exist"),
        ("CARILLON_BIND", "localhost", "is not an IP address"),
        ("CARILLON_UWSGI_PROCESSES", "-1", "whole number"),
        ("CARILLON_STATIC_ROOT", "static", "is not an absolute path"),
        ("CARILLON_SESSION_COOKIE_NAME", "a b", "is not a cookie name"),
        ("CARILLON_DEVELOPMENT", "true", "is neither 0 nor 1"),
    ],
)
def test_one_bad_value_is_one_line(name, value, said):
    found = problems(**{name: value})
    assert len(found) == 1
    assert name in found[0]
    assert said in found[0]


def test_a_cookie_that_development_could_not_keep():
    (found,) = problems(CARILLON_DEVELOPMENT="1", CARILLON_SESSION_COOKIE_NAME="__Host-a")
    assert "browsers keep '__Host-a' over HTTPS alone" in found


def test_a_teams_own_settings(tmp_path):
    file = tmp_path / "key"
    file.write_text("from-file\n")
    text = f"PROJECT_URL=https://bells.example\nPROJECT_KEY_FILE={file}\nPROJEKT_X=1\n"
    values, found = parse_file(text, "carillon.env")
    assert len(found) == 1
    assert "carillon.env:3: PROJEKT_X" in found[0]
    assert "PROJECT_" in found[0]
    project = load({**GOOD, **values}).project
    assert project == {"PROJECT_URL": "https://bells.example", "PROJECT_KEY": "from-file"}
    assert "from-file" not in repr(project)
    assert project.get("PROJECT_NONE") is None
    with pytest.raises(ConfigurationError, match="PROJECT_NONE is missing: set it or PROJECT_NONE_FILE"):
        project["PROJECT_NONE"]


def test_secret_from_a_file_without_its_newline(tmp_path):
    file = tmp_path / "password"
    file.write_text("from-file\r\n")
    environ = {**GOOD, "CARILLON_AMQP_PASSWORD_FILE": str(file)}
    del environ["CARILLON_AMQP_PASSWORD"]
    assert load(environ).amqp_urls == ["amqp://carillon:from-file@mq:5672/carillon"]


def test_secret_file_that_is_missing_empty_or_doubled(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert (
        "cannot be read: No such file"
        in problems(CARILLON_AMQP_PASSWORD=None, CARILLON_AMQP_PASSWORD_FILE=str(tmp_path / "none"))[0]
    )
    assert "is empty" in problems(CARILLON_AMQP_PASSWORD=None, CARILLON_AMQP_PASSWORD_FILE=str(empty))[0]
    assert "both set: keep one" in problems(CARILLON_AMQP_PASSWORD_FILE=str(empty))[0]


def test_no_secret_is_shown():
    environment = load({**GOOD, "CARILLON_SECRET_KEY_FALLBACKS": "old-secret"})
    for secret in ("k" * 40, "old-secret", "db-secret", "mq-secret"):
        assert secret not in repr(environment)
    (line,) = problems(CARILLON_AMQP_HOSTS="amqp://carillon:mq-secret@mq")
    assert "mq-secret" not in line


def test_urls_are_percent_encoded_and_tls_moves_the_port(tmp_path):
    authority = tmp_path / "ca.pem"
    authority.touch()
    environment = load(
        {
            **GOOD,
            "CARILLON_AMQP_PASSWORD": "p@ss/w:rd",
            "CARILLON_AMQP_HOSTS": "mq1, [::1]:5673",
            "CARILLON_AMQP_TLS_CA": str(authority),
        }
    )
    assert environment.amqp_urls == [
        "amqps://carillon:p%40ss%2Fw%3Ard@mq1:5671/carillon",
        "amqps://carillon:p%40ss%2Fw%3Ard@[::1]:5673/carillon",
    ]


def test_development_needs_no_hosts_and_sqlite_no_password():
    environment = load(
        {
            "CARILLON_DEVELOPMENT": "1",
            "CARILLON_SECRET_KEY": "short",
            "CARILLON_DATABASE_HOST": "sqlite",
            "CARILLON_AMQP_HOSTS": "mq",
            "CARILLON_AMQP_PASSWORD": "x",
        }
    )
    assert environment.allowed_hosts == ["localhost", "127.0.0.1", "[::1]"]


def test_file_is_data_and_a_misspelt_name_is_a_problem():
    text = "# comment\n\nCARILLON_BIND = '::1'\nCARILLON_BLIND=1\nno equals\nCARILLON_BIND=0.0.0.0\n"
    values, found = parse_file(text, "carillon.env")
    assert values == {"CARILLON_BIND": "::1"}
    assert [line.split(" ")[0] for line in found] == ["carillon.env:4:", "carillon.env:5:", "carillon.env:6:"]
    assert "CARILLON_BLIND is no setting of Carillon" in found[0]


def test_environment_overrides_the_file(tmp_path, monkeypatch):
    file = tmp_path / "carillon.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in GOOD.items()) + "CARILLON_BIND=::1\n")
    for name in GOOD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CARILLON_ENVIRONMENT_FILE", str(file))
    monkeypatch.setenv("CARILLON_DATABASE_HOST", "another")
    environment = load()
    assert environment.database_host == "another"
    assert environment.bind == "::1"


def test_a_file_that_was_named_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("CARILLON_ENVIRONMENT_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"CARILLON_ENVIRONMENT_FILE: .* does not exist"):
        load()


def test_the_reference_has_every_name_with_its_default():
    text = (Path(__file__).parents[3] / "docs" / "reference" / "configuration.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `CARILLON_")]
    documented, defaults = set(), {}
    for name, _, default in rows:
        base = name.split("`")[1]
        documented |= {base, f"{base}_FILE"} if "`_FILE`" in name else {base}
        defaults[base] = default.strip().strip("`")
    assert documented == NAMES
    plain = load({name: GOOD.get(name, "") for name in NAMES})
    for name, default in defaults.items():
        if default and " " not in default and default not in ("required", "none"):
            field = name.removeprefix("CARILLON_").lower()
            if hasattr(plain, field):  # of the others a URL is made
                assert (
                    str(int(value) if isinstance(value := getattr(plain, field), bool) else value) == default
                )


@pytest.mark.parametrize(
    ("development", "listen", "shown"),
    [
        ("1", "127.0.0.1", True),
        ("1", "::1", True),
        ("1", "0.0.0.0", False),
        ("1", "192.168.1.7", False),
        ("1", "", False),
        ("0", "", False),
    ],
)
def test_the_debug_page_is_shown_on_loopback_in_development_alone(development, listen, shown):
    said = {"CARILLON_DEVELOPMENT": development, "CARILLON_DEVELOPMENT_LISTEN": listen}
    assert load({**GOOD, **said}).debug_page is shown


def test_production_has_no_debug_page_whatever_it_listens_on():
    with pytest.raises(
        ConfigurationError, match="CARILLON_DEVELOPMENT_LISTEN is for development alone: remove it"
    ):
        load({**GOOD, "CARILLON_DEVELOPMENT": "0", "CARILLON_DEVELOPMENT_LISTEN": "127.0.0.1"})


JWT = {
    "CARILLON_JWT_ISSUER": "https://id.test",
    "CARILLON_JWT_AUDIENCE": "us",
    "CARILLON_JWT_KEYS_URL": "https://id.test/keys",
}


def test_identity_is_said_or_left_to_the_defaults(tmp_path):
    assert load(GOOD).identity == {"IDENTITY_USERS": "create"}
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": []}')
    secret = tmp_path / "secret"
    secret.write_text("a-secret\n")
    said = {
        **JWT,
        "CARILLON_JWT_KEYS_URL": "",
        "CARILLON_JWT_KEYS_FILE": str(keys),
        "CARILLON_JWT_ALGORITHMS": "ES256, EdDSA",
        "CARILLON_OIDC_ISSUER": "http://127.0.0.1:9400",
        "CARILLON_OIDC_CLIENT_ID": "carillon",
        "CARILLON_OIDC_CLIENT_SECRET_FILE": str(secret),
        "CARILLON_IDENTITY_USERS": "known",
    }
    environment = load({**GOOD, **said})
    assert environment.identity == {
        "JWT_ISSUER": "https://id.test",
        "JWT_AUDIENCE": "us",
        "JWT_KEYS": {"keys": []},
        "JWT_ALGORITHMS": ["ES256", "EdDSA"],
        "OIDC_ISSUER": "http://127.0.0.1:9400",
        "OIDC_CLIENT_ID": "carillon",
        "OIDC_CLIENT_SECRET": "a-secret",
        "IDENTITY_USERS": "known",
    }
    assert "a-secret" not in repr(environment)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("CARILLON_JWT_AUDIENCE", "", "CARILLON_JWT_AUDIENCE is missing: CARILLON_JWT_ISSUER needs it"),
        ("CARILLON_JWT_KEYS_URL", "", "CARILLON_JWT_KEYS_FILE is missing"),
        ("CARILLON_JWT_KEYS_URL", "http://id.test/keys", "is not an https:// address"),
        ("CARILLON_JWT_KEYS_URL", "id.test/keys", "is not an https:// address"),
        ("CARILLON_JWT_KEYS_URL", "https://ann:secret@id.test/", "its value is not an https:// address"),
        ("CARILLON_JWT_KEYS_FILE", "/dev/null/none", "does not exist"),
        ("CARILLON_JWT_ALGORITHMS", "HS256", "'HS256' is not one of RS256, "),
        ("CARILLON_JWT_ALGORITHMS", "none", "'none' is not one of RS256, "),
        ("CARILLON_OIDC_ISSUER", "https://id.test", "CARILLON_OIDC_CLIENT_ID is missing"),
        ("CARILLON_OIDC_ISSUER", "http://id.test", "is not an https:// address"),
        ("CARILLON_IDENTITY_USERS", "all", "is not one of create, known"),
        ("CARILLON_IDENTITY_TLS_CA", "/none", "does not exist"),
    ],
)
def test_identity_that_cannot_be(name, value, why):
    found = problems(**{**JWT, name: value})
    assert any(why in problem for problem in found), found
    assert "secret@" not in "".join(found)


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", '{"keys": 1}'])
def test_a_file_that_is_no_set_of_keys(tmp_path, text):
    path = tmp_path / "keys.json"
    path.write_text(text)
    found = problems(**{**JWT, "CARILLON_JWT_KEYS_URL": "", "CARILLON_JWT_KEYS_FILE": str(path)})
    assert any(f"CARILLON_JWT_KEYS_FILE: {path} " in problem for problem in found), found
