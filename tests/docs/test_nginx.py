"""The proxy's configuration is one that nginx takes, and it closes what it says."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.raw_clients import make_certificate

CONFIGURATION = Path(__file__).parents[2] / "docs" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/local/bin:/usr/bin")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    """As it is, but for its paths."""
    certificate, key = make_certificate(tmp_path)
    text = CONFIGURATION.read_text()
    for there, here in (
        ("/etc/ssl/pool/cert.pem", certificate),
        ("/etc/ssl/pool/key.pem", key),
        ("/var/log/nginx/", tmp_path),
    ):
        assert there in text
        text = text.replace(there, f"{here}/" if there.endswith("/") else str(here))
    whole = tmp_path / "nginx.conf"
    whole.write_text(f"pid {tmp_path}/pid; error_log {tmp_path}/error; events {{}} http {{ {text} }}")
    assert NGINX is not None
    done = subprocess.run([NGINX, "-t", "-c", str(whole), "-p", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.replace('the "user" directive', ""), done.stderr
