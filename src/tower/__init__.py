"""The reference application: jobs, their events, schedules, and the page, as Tower had them."""
