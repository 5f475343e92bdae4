"""What each page shows, read from Postgres: functions that return values, one file a page. All tenants' things: operators only."""
