"""The accelerator: RTL, golden model, verification, synthesis and simulator. Imports only speq.bits and speq.errors."""
