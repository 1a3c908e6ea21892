"""`gen1-eval`: edits of many (video, prompt) pairs over the dials, measured, compared with baselines, and plotted."""
