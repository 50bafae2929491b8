"""The page at `/`: what the project owner looks at to know whether the model helps.

`views` says what is on it, `gather` collects that, `html` and `charts` draw it. Plain HTML with one style sheet inside:
no script, no build step, nothing fetched from elsewhere.
"""
