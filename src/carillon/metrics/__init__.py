"""What a process counts (`names`), how others see it (`snapshot`), the directory for it (`shared`)."""
