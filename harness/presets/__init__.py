"""The settings that come with kdbench, one TOML file a preset."""
