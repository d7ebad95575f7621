"""The accelerator: RTL, golden model, verification, synthesis and simulator. Of speq it imports formats and errors."""
