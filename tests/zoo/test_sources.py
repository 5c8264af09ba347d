"""Names to files: what a name means, the order of the sources, the Hub's routes, offline, and damaged caches."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from context_pred.card import Card, HubFile
from context_pred.errors import (
    DigestError,
    DownloadError,
    InvalidInputError,
    NotCachedError,
    StorageError,
    UnknownNameError,
    WeightsError,
)
from context_pred.zoo import download, pull, sources
from context_pred.zoo.hub import HubId, Options

ROOT = Path(__file__).resolve().parents[2]
NAME = "resnet18_tiny"
REPOSITORY = "someone/tiny"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every pause, ours and the Hub client's."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


def put_card(folder: Path, **values: Any) -> Card:
    """Put a model into the registry: ``NAME.1``, with ``NAME`` as its plain name."""
    card = Card(
        name=f"{NAME}.1",
        backbone="resnet18",
        neck_channels=16,
        channel_order="bgr",
        source_label_order="openmmlab-1.x",
        aliases=(NAME,),
        **values,
    )
    (folder / card.name).mkdir(exist_ok=True)
    card.write(folder / card.name / "card.json")
    return card


@pytest.fixture
def by_url(registry_folder: Path, caches: SimpleNamespace, server: Any, tiny: SimpleNamespace) -> Card:
    """A model that is published at a URL alone."""
    server.files["/tiny.pth"] = tiny.pth
    return put_card(registry_folder, url=f"{server.url}/tiny.pth", url_sha256_prefix=tiny.pth_sha256[:8])


@pytest.fixture
def on_hub(registry_folder: Path, caches: SimpleNamespace, hub: Any, tiny: SimpleNamespace) -> Card:
    """A model that the Hub has alone."""
    revision = hub.add(REPOSITORY, {"model.safetensors": tiny.safetensors})
    return put_card(registry_folder, hub=HubFile(REPOSITORY, revision, tiny.sha256))


@pytest.fixture
def on_both(registry_folder: Path, caches: SimpleNamespace, server: Any, hub: Any, tiny: SimpleNamespace) -> Card:
    """A model that is on the Hub and at a URL."""
    server.files["/tiny.pth"] = tiny.pth
    revision = hub.add(REPOSITORY, {"model.safetensors": tiny.safetensors})
    return put_card(
        registry_folder,
        hub=HubFile(REPOSITORY, revision, tiny.sha256),
        url=f"{server.url}/tiny.pth",
        url_sha256_prefix=tiny.pth_sha256[:8],
    )


def fetch(**options: Any) -> Path:
    return pull(NAME, progress=False, **options)


# What a name means


@pytest.mark.parametrize(
    ("text", "revision", "meaning"),
    [
        ("hf-hub:a/b@main", None, HubId("a/b", "main")),
        ("hf-hub:a/b", "v1.0", HubId("a/b", "v1.0")),
        ("hf-hub:a/b@v1.0", "v1.0", HubId("a/b", "v1.0")),
        (f"hf-hub:a-1/b.c_d@{'0f' * 20}", None, HubId("a-1/b.c_d", "0f" * 20)),
        ("hf-hub:a/b@refs/pr/1", None, HubId("a/b", "refs/pr/1")),
    ],
)
def test_hub_ids(text: str, revision: str | None, meaning: HubId) -> None:
    assert sources.resolve(text, revision) == meaning


@pytest.mark.parametrize(
    ("text", "revision", "message"),
    [
        ("hf-hub:a/b", None, r"names no revision.*'hf-hub:a/b@COMMIT'.*'hf-hub:a/b@main'"),
        ("hf-hub:a/b@main", "v1", r"names revision 'main', but revision='v1'"),
        ("hf-hub:a", None, "not of the form"),
        ("hf-hub:a/b/c@main", None, "not of the form"),
        ("hf-hub:", None, "not of the form"),
        ("hf-hub:a/b@", None, "not of the form"),
        (NAME, "main", r"revision='main' belongs to 'hf-hub:owner/name'"),
    ],
)
def test_hub_ids_that_do_not_do(by_url: Card, text: str, revision: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sources.resolve(text, revision)


def test_a_name_that_is_a_path_too_is_refused(by_url: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sources.resolve(NAME) == by_url
    (tmp_path / NAME).mkdir()
    with pytest.raises(InvalidInputError) as error:
        sources.resolve(NAME)
    assert f"{NAME}.1" in str(error.value)
    assert str(tmp_path / NAME) in str(error.value)
    assert f"'./{NAME}'" in str(error.value)
    assert sources.resolve(f"./{NAME}") == Path(NAME)
    assert sources.resolve(Path(NAME)) == Path(NAME)
    assert sources.resolve(f"{NAME}.1") == by_url


@pytest.mark.parametrize("given", ["x.pth", "./nothing", "~/nothing-here", "/nothing/here", "a/b/c", "x.safetensors"])
def test_a_path_that_is_not_there(given: str) -> None:
    with pytest.raises(NotCachedError, match="No file or folder"):
        sources.resolve(given)


def test_a_path_that_is_nearly_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").touch()
    with pytest.raises(NotCachedError, match=r"Did you mean 'checkpoint\.pth'"):
        sources.resolve(tmp_path / "chekpoint.pth")


def test_neither_name_nor_path(by_url: Card) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{NAME}'"):
        sources.resolve("resnet18-tiny")


# From a URL


def test_from_a_url_into_the_cache_and_then_from_there(
    by_url: Card, caches: SimpleNamespace, server: Any, tiny: SimpleNamespace
) -> None:
    folder = fetch()
    assert folder == caches.zoo / by_url.name
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors", "source.json"]
    sidecar = json.loads((folder / "source.json").read_text())
    assert sidecar == {
        "url": by_url.url,
        "source_sha256": tiny.pth_sha256,
        "sha256": download.file_sha256(folder / "model.safetensors"),
    }
    assert fetch() == fetch(local_files_only=True) == folder
    assert len(server.gets) == 1
    assert [p.name for p in (caches.zoo / ".downloads").iterdir()] == []


def test_conversion_gives_the_same_bytes_again(by_url: Card, server: Any, tmp_path: Path) -> None:
    first = fetch(cache_dir=tmp_path / "one")
    second = fetch(cache_dir=tmp_path / "two")
    assert first == tmp_path / "one" / "context_pred" / by_url.name
    for name in ("card.json", "model.safetensors", "source.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert len(server.gets) == 2


def test_force_download_fetches_again(by_url: Card, server: Any) -> None:
    before = fetch().stat().st_ino
    assert fetch(force_download=True).stat().st_ino != before
    assert len(server.gets) == 2


def test_a_card_that_names_another_file_today_makes_the_cached_one_stale(
    by_url: Card, registry_folder: Path, server: Any
) -> None:
    fetch()
    put_card(registry_folder, url=f"{server.url}/new.pth", url_sha256_prefix="00000000")
    with pytest.raises(DownloadError, match=r"new\.pth: HTTP 404"):
        fetch()


def test_a_url_without_a_digest_is_not_used(
    registry_folder: Path, caches: SimpleNamespace, server: Any, tiny: SimpleNamespace
) -> None:
    put_card(registry_folder, url=f"{server.url}/tiny.pth")
    server.files["/tiny.pth"] = tiny.pth
    with pytest.raises(DownloadError, match="nothing is loaded unverified"):
        fetch()
    assert server.log == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no weights", "no sidecar", "bad sidecar", "no folder"])
def test_damage_in_the_cache_is_repaired(
    by_url: Card, server: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = fetch()
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    spoil(folder, damage)
    with caplog.at_level(logging.WARNING, logger="context_pred"):
        assert fetch() == folder
    assert weights.read_bytes() == good
    assert len(server.gets) == 2
    if damage in ("flip", "cut", "empty"):
        assert "Fetching it again" in caplog.text


def spoil(folder: Path, damage: str) -> None:
    weights, sidecar = folder / "model.safetensors", folder / "source.json"
    data = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "bad sidecar":
        sidecar.write_text("{")
    else:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_damage_offline_says_what_to_delete(by_url: Card, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spoil(folder, "flip")
    with pytest.raises(DigestError) as error:
        fetch()
    assert f"{folder / 'model.safetensors'} has SHA-256" in str(error.value)
    assert "Delete it" in str(error.value)


def test_damage_that_cannot_be_repaired_keeps_its_name(by_url: Card, server: Any) -> None:
    spoil(fetch(), "flip")
    server.files.clear()
    with pytest.raises(DigestError, match=r"Delete it.*could not be fetched again.*HTTP 404"):
        fetch()


# From the Hub


def test_from_the_hub_and_then_without_a_request(
    on_hub: Card, caches: SimpleNamespace, hub: Any, tiny: SimpleNamespace
) -> None:
    folder = fetch()
    assert folder.is_relative_to(caches.hub)
    assert (folder / "model.safetensors").read_bytes() == tiny.safetensors
    requests = len(hub.log)
    assert requests > 0
    assert fetch() == fetch(local_files_only=True) == folder
    assert len(hub.log) == requests


def test_the_hub_comes_before_the_url(on_both: Card, server: Any, hub: Any) -> None:
    fetch()
    assert hub.log
    assert not server.log


@pytest.mark.parametrize("trouble", ["down", "gone", "no revision", "no file", "wrong bytes", "private"])
def test_where_the_hub_does_not_give_it_the_url_does(
    on_both: Card, server: Any, hub: Any, caches: SimpleNamespace, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    revisions = hub.repositories[REPOSITORY]
    commit = on_both.hub.revision if on_both.hub else ""
    if trouble == "down":
        hub.status = 500
    elif trouble == "gone":
        hub.repositories.clear()
    elif trouble == "no revision":
        revisions.clear()
    elif trouble == "no file":
        revisions[commit][1].clear()
    elif trouble == "wrong bytes":
        revisions[commit][1]["model.safetensors"] = b"something else"
    else:
        hub.token = "secret"
    with caplog.at_level(logging.WARNING, logger="context_pred"):
        assert fetch() == caches.zoo / on_both.name
    assert len(server.gets) == 1
    assert f"Trying {on_both.url} instead" in caplog.text


def test_where_neither_gives_it_both_are_named(on_both: Card, server: Any, hub: Any) -> None:
    hub.repositories.clear()
    server.files.clear()
    with pytest.raises(DownloadError) as error:
        fetch()
    assert REPOSITORY in str(error.value)
    assert "no such repository" in str(error.value)
    assert f"{on_both.url}: HTTP 404" in str(error.value)
    assert "load_pretrained(PATH)" in str(error.value)


def test_wrong_bytes_from_the_hub_alone(on_hub: Card, hub: Any) -> None:
    hub.repositories[REPOSITORY][on_hub.hub.revision if on_hub.hub else ""][1]["model.safetensors"] = b"something else"
    with pytest.raises(DigestError, match="was expected"):
        fetch()


def test_damage_in_the_hub_s_cache_is_repaired(on_hub: Card, hub: Any, tiny: SimpleNamespace) -> None:
    folder = fetch()
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(tiny.safetensors[:-1] + b"?")
    assert (fetch() / "model.safetensors").read_bytes() == tiny.safetensors


def test_a_private_repository_needs_its_token(on_hub: Card, hub: Any) -> None:
    hub.token = "secret"
    with pytest.raises(DownloadError, match="log in or pass token="):
        fetch(token=False)
    fetch(token="secret")


def test_the_hub_s_download_survives_a_cut(on_hub: Card, hub: Any, tiny: SimpleNamespace) -> None:
    hub.faults = ["cut"]
    assert (fetch() / "model.safetensors").read_bytes() == tiny.safetensors


# hf-hub:owner/name@revision


def published(hub: Any, tiny: SimpleNamespace, **card: Any) -> str:
    values = {"sha256": tiny.sha256, **card}
    made = Card(name="tiny", backbone="resnet18", neck_channels=16, file="model.safetensors", **values)
    return str(hub.add(REPOSITORY, {"card.json": made.to_json().encode(), "model.safetensors": tiny.safetensors}))


def test_a_repository_at_a_commit_is_asked_for_once(hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace) -> None:
    commit = published(hub, tiny)
    folder = pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False)
    assert folder.name == commit
    requests = len(hub.log)
    assert pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False) == folder
    assert pull(f"hf-hub:{REPOSITORY}", revision=commit, local_files_only=True, progress=False) == folder
    assert len(hub.log) == requests


def test_a_branch_is_followed(hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace) -> None:
    first = published(hub, tiny)
    assert pull(f"hf-hub:{REPOSITORY}@main", progress=False).name == first
    second = published(hub, tiny, title="newer")
    assert second != first
    assert pull(f"hf-hub:{REPOSITORY}@main", progress=False).name == second
    assert pull(f"hf-hub:{REPOSITORY}@main", progress=False, local_files_only=True).name == second


def test_a_repository_that_promises_no_digest_is_held_to_the_hub_s(
    hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace
) -> None:
    commit = published(hub, tiny, sha256=None)
    folder = pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False)
    found = sources.fetch(HubId(REPOSITORY, commit), Options(local_files_only=True))
    assert found.sha256 == tiny.sha256
    (folder / "model.safetensors").resolve().write_bytes(b"damaged")
    with pytest.raises(DigestError):
        pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False, local_files_only=True)


def test_a_card_that_promises_other_bytes(hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace) -> None:
    commit = published(hub, tiny, sha256="0" * 64)
    with pytest.raises(DigestError, match="0000 was expected"):
        pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False)


def test_a_card_cannot_name_a_file_elsewhere(
    hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    commit = published(hub, tiny)
    values = json.loads(hub.repositories[REPOSITORY][commit][1]["card.json"])
    values["file"] = "../../../../card.json"
    hub.repositories[REPOSITORY][commit][1]["card.json"] = json.dumps(values).encode()
    with pytest.raises(WeightsError, match="the name of a file beside it"):
        pull(f"hf-hub:{REPOSITORY}@{commit}", progress=False)
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="the name of a file beside it"):
        sources.fetch(tmp_path, Options())


@pytest.mark.parametrize("name", [f"{REPOSITORY}@v9", "nobody/nothing@main"])
def test_a_repository_or_revision_that_is_not_there(
    hub: Any, caches: SimpleNamespace, tiny: SimpleNamespace, name: str
) -> None:
    published(hub, tiny)
    with pytest.raises(DownloadError, match="no such"):
        pull(f"hf-hub:{name}", progress=False)


# Without a network


def test_offline_with_nothing_cached_says_what_where_and_the_ways_out(
    on_both: Card, registry_folder: Path, caches: SimpleNamespace, server: Any, hub: Any, offline: None
) -> None:
    shipped = registry_folder / "resnet18_shipped.1"
    shipped.mkdir()
    Card(name=shipped.name, backbone="resnet18", file="model.safetensors", aliases=("resnet18_shipped",)).write(
        shipped / "card.json"
    )
    (shipped / "model.safetensors").touch()
    with pytest.raises(NotCachedError) as error:
        fetch()
    text = str(error.value)
    for part in (
        on_both.name,
        "HF_HUB_OFFLINE=1 forbids fetching it",
        f"model.safetensors in {caches.zoo / on_both.name}",
        f"model.safetensors of {REPOSITORY}@",
        str(caches.hub),
        "(1) connect",
        "HF_ENDPOINT",
        str(on_both.url),
        "(2) point to a file",
        "(3) use a model that ships with the library: load_pretrained('resnet18_shipped')",
    ):
        assert part in text
    assert "\n" not in text
    assert not server.log
    assert not hub.log


def test_local_files_only_forbids_the_url_too(by_url: Card, server: Any) -> None:
    with pytest.raises(NotCachedError, match="local_files_only=True forbids"):
        fetch(local_files_only=True)
    assert not server.log


def test_no_server_that_answers_is_like_offline(on_both: Card, server: Any, hub: Any) -> None:
    for one in (server, hub):
        one.httpd.shutdown()
        one.httpd.server_close()
    with pytest.raises(NotCachedError, match=r"no server could be reached \(.*Ways out"):
        fetch()


def test_a_hub_id_offline(hub: Any, caches: SimpleNamespace, offline: None) -> None:
    with pytest.raises(NotCachedError, match=rf"hf-hub:{REPOSITORY}@main is not on this machine.*Ways out"):
        pull(f"hf-hub:{REPOSITORY}@main", progress=False)
    assert not hub.log


@pytest.mark.parametrize("name", [NAME, f"hf-hub:{REPOSITORY}@main"])
def test_force_download_offline_contradicts_itself(on_both: Card, name: str) -> None:
    with pytest.raises(InvalidInputError, match="drop one"):
        pull(name, local_files_only=True, force_download=True)


def test_the_hub_s_own_environment_variables_are_obeyed(
    on_both: Card, registry_folder: Path, hub: Any, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from context_pred import card;"
        "card.weights_folder = lambda: Path(sys.argv[1]);"
        "from context_pred.zoo import pull; print(pull(sys.argv[2])); print('torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", code, str(registry_folder), NAME]
        return subprocess.run(arguments, env={**environment, **more}, capture_output=True, text=True, check=False)

    refused = run(HF_HUB_OFFLINE="1")
    assert "NotCachedError" in refused.stderr
    done = run()
    folder, torch = done.stdout.split()
    assert Path(folder).is_relative_to(tmp_path / "home" / "hub")
    assert torch == "False"
    again = run(HF_HUB_OFFLINE="1")
    assert again.stdout.split()[0] == folder


# Caches that refuse


def test_a_read_only_cache(by_url: Card, tmp_path: Path, as_ordinary_user: Any) -> None:
    fetch()
    (tmp_path / "closed").mkdir(mode=0o555)
    with as_ordinary_user(), pytest.raises(StorageError, match=r"may not write there.*cache_dir= or HF_HOME"):
        fetch(cache_dir=tmp_path / "closed")


def test_a_read_only_cache_that_has_the_model_will_do(by_url: Card, tmp_path: Path, as_ordinary_user: Any) -> None:
    closed = tmp_path / "closed"
    folder = fetch(cache_dir=closed)
    for path in [*closed.rglob("*"), closed]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_ordinary_user():
        assert fetch(cache_dir=closed) == folder


def test_a_read_only_hub_cache(on_hub: Card, tmp_path: Path, as_ordinary_user: Any) -> None:
    fetch()
    (tmp_path / "closed").mkdir(mode=0o555)
    with as_ordinary_user(), pytest.raises(StorageError, match="may not write there"):
        fetch(cache_dir=tmp_path / "closed")


# What ships, and what lies at a path


def test_what_ships_needs_no_cache(
    registry_folder: Path, caches: SimpleNamespace, offline: None, tiny: SimpleNamespace
) -> None:
    card = put_card(registry_folder, file="model.safetensors", sha256=tiny.sha256)
    weights = registry_folder / card.name / "model.safetensors"
    with pytest.raises(NotCachedError, match="reinstall"):
        fetch()
    weights.write_bytes(tiny.safetensors)
    assert fetch() == weights.parent
    weights.write_bytes(tiny.safetensors[:-1] + b"?")
    with pytest.raises(DigestError, match="reinstall context-pred"):
        fetch()
    assert not caches.assets.exists()
    assert not caches.hub.exists()


def test_a_folder_that_is_no_model_folder_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(NotCachedError, match=r"not a model folder: it has no model\.safetensors, but photo\.jpg"):
        sources.fetch(tmp_path, Options())


@pytest.mark.parametrize(("card", "source"), [(True, False), (False, True), (True, True)])
def test_a_model_folder_is_held_to_its_digest(tmp_path: Path, tiny: SimpleNamespace, card: bool, source: bool) -> None:
    (tmp_path / "model.safetensors").write_bytes(tiny.safetensors)
    if card:
        Card(name="x", backbone="resnet18", sha256=tiny.sha256).write(tmp_path / "card.json")
    if source:
        (tmp_path / "source.json").write_text(json.dumps({"sha256": tiny.sha256}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = sources.fetch(path, Options())
        assert found.path == tmp_path / "model.safetensors"
        assert found.sha256 == tiny.sha256
        assert (found.card is not None) == card


def test_a_card_beside_another_file_is_not_its_card(tmp_path: Path) -> None:
    Card(name="x", backbone="resnet18", sha256="0" * 64).write(tmp_path / "card.json")
    (tmp_path / "other.safetensors").touch()
    assert sources.fetch(tmp_path / "other.safetensors", Options()) == sources.Found(
        tmp_path / "other.safetensors", None, None, "path"
    )
