"""Fetching, from a server on this machine that is good, slow to fail, or hostile."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest

from edgeprune.data import download
from edgeprune.data.download import fetch
from edgeprune.data.registry import Download, FileSpec, Source
from edgeprune.errors import EdgePruneError

BODY = bytes(range(256)) * 20


def spec_of(name: str, body: bytes) -> FileSpec:
    return FileSpec(name, len(body), hashlib.sha256(body).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    """``/HOW/...`` serves the server's body in that way."""

    def do_GET(self):
        body = self.server.body
        how = self.path.split("/")[1]
        self.server.asked.append(self.path)
        if how == "missing":
            self.send_error(404, "Not Found")
            return
        if how == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/" + self.path.split("/", 2)[2])
            self.end_headers()
            return
        if how == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        self.send_response(200)
        length = {"good": len(body), "cut": len(body), "corrupt": len(body), "liar": 10**12}.get(how)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if how == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        elif how in ("cut", "short"):
            body = body[: len(body) // 2]
        elif how == "flood":
            body = body * 1000
        try:
            if how == "silent":
                self.server.over.wait(20)
            else:
                self.wfile.write(body)
        except ConnectionError:
            pass  # the client has heard enough

    def log_message(self, *_):
        pass


@contextmanager
def serving(body):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.asked, server.over = body, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(BODY) as running:
        yield running


def known(server, *ways, body=BODY, name="file.bin", members=()):
    """A data set whose one file is served in each of ``ways`` in turn."""
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{how}/{name}" for how in ways)
    return Source("mine", "what", "licence", "cite", ((name,),), (Download(spec_of(name, body), urls, members),))


def left(folder):
    """Everything under a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(source, root):
    """The sentence of a fetch that fails; nothing may be left behind."""
    before = left(root.parent)
    with pytest.raises(EdgePruneError) as caught:
        fetch(source, root)
    assert "\n" not in str(caught.value)
    assert left(root.parent) == before
    return str(caught.value)


@pytest.mark.parametrize("how", ["good", "plain", "moved"])
def test_a_good_file_is_kept(server, tmp_path, how):
    seen = []
    new = fetch(known(server, how), tmp_path / "root", lambda *state: seen.append(state))
    assert new == [tmp_path / "root" / "mine" / "file.bin"]
    assert new[0].read_bytes() == BODY
    assert left(tmp_path / "root" / "mine") == ["file.bin"]
    assert seen[-1] == ("file.bin", len(BODY), len(BODY))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "answers 404 Not Found"),
        ("cut", f"ends after {len(BODY) // 2} of {len(BODY)} bytes"),
        ("short", f"ends after {len(BODY) // 2} of {len(BODY)} bytes"),
        ("corrupt", "another checksum"),
        ("flood", f"sends more than the published {len(BODY)} bytes"),
        ("liar", "offers 1000000000000 bytes"),
        ("elsewhere", "redirect|Redirect|not allowed"),
    ],
)
def test_a_bad_file_is_one_sentence_and_nothing_is_left(server, tmp_path, how, sentence):
    found = refused(known(server, how), tmp_path / "root")
    assert any(part in found for part in sentence.split("|")), found
    assert "mine: file.bin could not be fetched (127.0.0.1:" in found and "put the file into" in found


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    assert "sends nothing" in refused(known(server, "silent"), tmp_path / "root")


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(BODY) as gone:
        source = known(gone, "good")
    assert "Connection refused" in refused(source, tmp_path / "root")


def test_mirrors_are_tried_in_order(server, tmp_path):
    (new,) = fetch(known(server, "missing", "corrupt", "cut", "good", "flood"), tmp_path)
    assert new.read_bytes() == BODY
    assert [path.split("/")[1] for path in server.asked] == ["missing", "corrupt", "cut", "good"]
    assert left(tmp_path) == ["mine", "mine/file.bin"]


def test_all_mirrors_are_named_when_none_is_good(server, tmp_path):
    sentence = refused(known(server, "missing", "corrupt"), tmp_path / "root")
    assert "404" in sentence and "checksum" in sentence


def test_what_is_there_and_right_is_not_fetched_again(server, tmp_path):
    source = known(server, "good")
    fetch(source, tmp_path)
    assert fetch(source, tmp_path) == [] and len(server.asked) == 1
    (tmp_path / "mine" / "file.bin").write_bytes(b"damaged")
    assert len(fetch(source, tmp_path)) == 1
    assert (tmp_path / "mine" / "file.bin").read_bytes() == BODY


def test_one_bad_file_of_two_leaves_nothing_and_touches_nothing(server, tmp_path):
    good, bad = known(server, "good", name="a.bin"), known(server, "corrupt", name="b.bin")
    both = replace(good, downloads=good.downloads + bad.downloads)
    (tmp_path / "root" / "mine").mkdir(parents=True)
    (tmp_path / "root" / "mine" / "own").write_text("the user's")
    refused(both, tmp_path / "root")
    refused(both, tmp_path / "other")


def test_a_place_that_cannot_be_written_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(known(server, "good"), tmp_path / "file")
    assert not server.asked


def tar_of(**members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, body in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def archive_source(body, name, **members):
    """(server, source) of an archive of which ``members`` are expected."""
    wanted = tuple(
        (path.replace("__", "/"), spec_of(path.split("__")[-1], content)) for path, content in members.items()
    )
    return lambda server: known(server, "good", body=body, name=name, members=wanted)


@pytest.fixture
def serve(monkeypatch):
    """``serve(body)``: a server for this body."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return serving


def test_only_the_expected_members_are_kept(serve, tmp_path):
    body = tar_of(readme=b"no", in__one=b"first", **{"../evil": b"no", "/tmp/evil-edgeprune": b"no"}, in__two=b"second")
    with serve(body) as server:
        new = fetch(archive_source(body, "a.tar.gz", in__one=b"first", in__two=b"second")(server), tmp_path / "root")
    assert sorted(path.read_bytes() for path in new) == [b"first", b"second"]
    assert left(tmp_path) == ["root", "root/mine", "root/mine/one", "root/mine/two"]


def test_a_member_may_bear_the_archives_name(serve, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.zip", b"inner")
        packed.writestr("../evil", b"no")
    with serve(out.getvalue()) as server:
        (new,) = fetch(archive_source(out.getvalue(), "a.zip", **{"a.zip": b"inner"})(server), tmp_path)
    assert new.read_bytes() == b"inner" and left(tmp_path) == ["mine", "mine/a.zip"]


def link_tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        entry = tarfile.TarInfo("one")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(entry)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("a.tar.gz", tar_of(two=b"x"), "archive without one"),
        ("a.tar.gz", tar_of(one=b"longer"), "holds one with 6 bytes, not the published 5"),
        ("a.tar.gz", tar_of(one=b"other"), "sends one with another checksum"),
        ("a.tar.gz", link_tar(), "archive without one"),
        ("a.tar.gz", tar_of(one=b"first")[:40], "cannot be read"),
        ("a.tar.gz", b"not an archive", "cannot be read"),
        ("a.zip", b"not an archive", "cannot be read"),
    ],
    # The archives hold the time they were made: no names for tests that other processes must find again.
    ids=["missing", "longer", "other", "link", "cut", "not-tar", "not-zip"],
)
def test_a_bad_archive_is_one_sentence_and_nothing_is_left(serve, tmp_path, name, body, sentence):
    with serve(body) as server:
        assert sentence in refused(archive_source(body, name, one=b"first")(server), tmp_path / "root")
