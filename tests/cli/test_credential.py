"""Credentials and token keys from the command line."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from turnwise_actor.access.credentials import CredentialFileError, Credentials, read_credentials
from turnwise_cli.verbs import cli
from turnwise_deploy.data_folder import DataFolder


def turnwise(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_a_credential_is_added_listed_and_revoked(tmp_path):
    added = turnwise("credential", "add", "web", "--role", "frontend", "--days", "30", "--data", tmp_path)
    assert added.exit_code == 0, added.output
    token = added.stdout.strip()
    file = tmp_path / "keys" / "credentials.json"
    assert token.startswith("tw_")
    assert token not in file.read_text(), "the file holds its digest alone"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    principal = Credentials(file).by_token(token)
    assert principal is not None
    assert (principal.name, principal.roles) == ("web", {"frontend"})
    listed = turnwise("credential", "list", "--data", tmp_path).output
    assert "web" in listed
    assert "frontend" in listed
    assert principal.id in listed
    assert token not in listed
    assert turnwise("credential", "revoke", "web", "--data", tmp_path).output == "revoked 1\n"
    assert Credentials(file).by_token(token) is None
    assert "nobody may call" in turnwise("credential", "list", "--data", tmp_path).output


def test_a_token_is_replaced_without_a_gap(tmp_path):
    file = tmp_path / "credentials.json"
    add = ("credential", "add", "web", "--role", "frontend", "--file", file)
    old, new = (turnwise(*add).stdout.strip() for _ in range(2))
    both = Credentials(file)
    first = both.by_token(old)
    assert first is not None
    assert both.by_token(new) is not None
    turnwise("credential", "revoke", first.id, "--file", file)
    assert Credentials(file).by_token(old) is None
    assert Credentials(file).by_token(new) is not None


def test_a_certificates_entry_has_no_token(tmp_path):
    file = tmp_path / "credentials.json"
    added = turnwise("credential", "add", "actor-1", "--role", "actor", "--certificate", "--file", file)
    assert (added.exit_code, added.stdout) == (0, "")
    assert [each.id for each in read_credentials(file)] == ["certificate"]
    assert Credentials(file).by_token("") is None, "an empty token is nobody's"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("revoke", "nobody"), "there is no credential 'nobody'"),
        (("add", "web", "--role", "king"), "'king' is not one of"),
        (("add", "", "--role", "actor"), "name: wanted 1 to 128 bytes"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, arguments, told):
    turnwise("credential", "add", "web", "--role", "frontend", "--data", tmp_path)
    refused = turnwise("credential", *arguments, "--data", tmp_path)
    assert refused.exit_code != 0
    assert told in refused.output


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"credentials": {}}',
        '{"credentials": ["web"]}',
        '{"credentials": [{"name": "web", "roles": ["king"]}]}',
        '{"credentials": [{"name": "web", "roles": []}]}',
        '{"credentials": [{"name": "web", "roles": ["actor"], "sha256": "12"}]}',
        '{"credentials": [{"name": "web", "roles": ["actor"], "token": "oops"}]}',
        '{"credentials": [{"name": "web", "roles": ["actor"], "expires": "soon"}]}',
        '{"credentials": [{"name": "web", "roles": ["actor"], "rate": 0}]}',
        '{"credentials": [], "rate": true}',
    ],
)
def test_a_wrong_file_is_named_and_its_secrets_are_not(tmp_path, content):
    file = tmp_path / "credentials.json"
    file.write_text(content)
    with pytest.raises(CredentialFileError, match=r"credentials\.json: ") as refused:
        read_credentials(file)
    assert "oops" not in str(refused.value)


def test_keys_are_rotated_from_the_command_line(tmp_path):
    keys = DataFolder(tmp_path).ensure_keys()
    first = json.loads(keys.read_text())["active"]
    rotated = turnwise("rotate-keys", "--data", tmp_path)
    assert rotated.output == "a new key is active; 1 older opens tokens still\n"
    content = json.loads(keys.read_text())
    assert content["active"] != first
    assert first in content["keys"]
    assert turnwise("rotate-keys", "--data", tmp_path / "none").exit_code == 1


def test_an_option_file_that_is_missing_is_one_clear_line(tmp_path: Path):
    refused = turnwise("status", "--token-file", tmp_path / "none")
    assert refused.exit_code == 2
    assert "does not exist" in refused.output


def test_a_token_is_not_sent_to_another_machine_in_plain_text(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("tw_x")
    for verb in (("status", "--learner", "learner.example.org:50050"), ("chat", "bot.example.org:50051")):
        refused = turnwise(*verb, "--token-file", token)
        assert refused.exit_code == 1, refused.output
        assert "learner.example.org" in refused.output or "bot.example.org" in refused.output
        assert "tw_x" not in refused.output
