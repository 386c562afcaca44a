"""`stsl app`: what it refuses before anything is loaded, and a server that starts, answers and stops."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import sd15_folder
from served import API, call, put
from stsl import images
from stsl.app import serving
from stsl.app.serving import Access, read_login, workplace
from stsl.cli import main
from stsl.priors import load

PATIENCE = 120  # seconds: a cold start of all libraries on a busy machine


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a command line is refused with; nothing may have been loaded."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a prior was loaded")

    monkeypatch.setattr(load, "load_prior", never)

    def run(*arguments: object) -> str:
        assert main(["app", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return run


@pytest.mark.parametrize(
    "way", [("--host", "0.0.0.0"), ("--share",), ("--host", "192.168.0.7"), ("--host", "box.local")]
)
def test_nobody_else_is_let_in_by_accident(way, refused):
    said = refused(*way)
    assert way[0] in said
    assert "--auth" in said
    assert "--i-know" in said


def test_a_taken_port_is_told_with_one_that_is_free(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        said = refused("--port", taken)
    assert f"port {taken} is taken" in said
    free = int(re.findall(r"give --port (\d+)", said)[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free))


def test_an_address_of_another_machine_is_told(refused):
    assert "is no address of this machine" in refused("--host", "203.0.113.7", "--i-know")


def test_without_gradio_the_way_to_install_it_is_told(refused, monkeypatch):
    found = serving.find_spec
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert 'pip install "stsl[app]"' in refused("--port", 0)


@pytest.mark.parametrize(
    ("auth", "content", "said"),
    [("ann", None, "USER:PASSWORD-FILE"), ("ann:nofile", None, "no file"), ("ann:file", "\nsecond", "no password")],
)
def test_a_login_needs_a_password(auth, content, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "file").write_text(content, encoding="utf-8")
    assert said in refused("--auth", auth, "--share")


def test_a_password_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "password.txt").write_text("two words \n", encoding="utf-8")
    assert read_login(f"ann:{tmp_path / 'password.txt'}") == ("ann", "two words")
    assert read_login(None) is None
    monkeypatch.setenv("STSL_APP_AUTH", "bob:with:colon")
    assert read_login(None) == ("bob", "with:colon")
    monkeypatch.setenv("STSL_APP_AUTH", "bob:")
    with pytest.raises(ValueError, match="no password"):
        read_login(None)


def test_what_becomes_reachable_is_told():
    assert Access().describe() is None
    assert Access("127.3.2.1").describe() is None
    network = Access("0.0.0.0", login=("ann", "secret")).describe()
    assert network is not None
    assert "7860" in network
    assert "ann" in network
    assert "secret" not in network
    internet = Access(share=True, acknowledged=True).describe()
    assert internet is not None
    assert "internet" in internet
    assert "without a login" in internet


def test_names_of_the_server_are_this_machines_unless_others_are_let_in():
    assert Access().names == {"127.0.0.1", "localhost"}
    assert Access("0.0.0.0", acknowledged=True).names is None


def test_the_environment_does_not_open_what_the_command_line_closed(monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/somewhere")
    with workplace() as folder:
        assert "GRADIO_SHARE" not in os.environ
        assert "GRADIO_ALLOWED_PATHS" not in os.environ
        assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(folder)
        assert folder.stat().st_mode & 0o077 == 0
        assert folder.is_relative_to(Path(tempfile.gettempdir()).resolve())
        (folder / "photo.png").write_bytes(b"a photo")
    assert not folder.exists()
    assert os.environ["GRADIO_SHARE"] == "True"
    assert os.environ["GRADIO_ALLOWED_PATHS"] == "/"
    assert os.environ["GRADIO_TEMP_DIR"] == "/somewhere"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_server_starts_answers_stops_amid_a_job_and_leaves_nothing(tmp_path):
    place, photo = tmp_path / "tmp", tmp_path / "face.png"
    place.mkdir()
    images.write(photo, images.astronaut_face(64))
    prior = sd15_folder(tmp_path / "mine")
    command = [sys.executable, "-m", "stsl", "app", "--port", "0", "--prior", str(prior), "--device", "cpu"]
    environment = os.environ | {"TMPDIR": str(place), "GRADIO_SHARE": "True"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stderr is not None
            told = next(line for line in server.stderr if "http://" in line)
            with httpx.Client(base_url=re.findall(r"http://127\.0\.0\.1:\d+", told)[0], timeout=PATIENCE) as plain:
                assert health(plain)["models"] == ["mine"]
                assert list(place.glob("stsl-app-*"))
                long = {"photo": put(plain, photo), "task": "denoise", "settings": {"steps": 1000}}
                assert call(plain, "restore", **long).status_code == 200
                while health(plain)["status"] != "busy":
                    pass
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=PATIENCE)
        finally:
            server.kill()
    assert (server.returncode, out, err.strip()) == (0, "", "")
    assert not list(place.glob("stsl-app-*"))


def health(plain: httpx.Client) -> dict[str, Any]:
    return plain.post(f"{API}/run/health", json={"data": []}).json()["data"][0]
