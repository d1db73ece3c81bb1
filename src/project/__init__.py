"""What is yours: settings, routes and consumers over Carillon's. See docs/how-to/your-app.md."""
