"""From presets and study files to the list of trials."""
