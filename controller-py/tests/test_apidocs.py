"""The page about the API needs nothing but the controller."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx2
import pytest

from tests.conftest import Running


@pytest.mark.parametrize("root", ["", "/mesh"])
async def test_the_page_comes_from_this_host_alone(running: Running, root: str) -> None:
    async with httpx2.AsyncClient(base_url=running.url) as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?:|[*]", policy)
        assert not re.search(r"(https?:)?//", page.text)
        # No script and no style inside the page: the policy would refuse them.
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page.text)
        wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(wanted) == 4
        for address in wanted:
            path = urljoin(f"{root}/docs", address).removeprefix(root)
            answer = await client.get(path)
            assert (answer.status_code, len(answer.content) > 0) == (200, True), path
            assert answer.headers["x-content-type-options"] == "nosniff"
        start = (await client.get("/docs/start.js")).text
        assert "validatorUrl: null" in start
        assert not re.search(r"(https?:)?//", start)
        assert (await client.get("/openapi.json")).status_code == 200
        # What the style sheet draws comes with it.
        style = (await client.get("/docs/swagger-ui.css")).text
        assert {match[:5] for match in re.findall(r"url\([\"']?([^)]*)", style)} <= {"data:"}
        assert "@import" not in style
        assert (await client.get("/docs/core.py")).status_code == 404
