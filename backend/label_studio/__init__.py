"""Label Studio's side of the backend: labelling configs, results, images, API client, connecting a project."""

from __future__ import annotations
