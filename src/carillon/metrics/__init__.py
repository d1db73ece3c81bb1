"""What a process counts (`names`), how others see it (`snapshot`), and the directory that they share (`shared`)."""
