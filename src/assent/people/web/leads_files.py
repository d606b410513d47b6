"""Files: labels out, items and labels in."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
