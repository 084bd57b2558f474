"""The Gradio app: thin over mmpt; importing it starts nothing."""
