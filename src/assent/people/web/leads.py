"""Pages of those who lead a project."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
