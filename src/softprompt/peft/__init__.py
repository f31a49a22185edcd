"""The PEFT-compatible interface: names, signatures and files of Hugging Face PEFT."""
