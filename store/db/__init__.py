"""The database: connections, schema, tables, column types, pages."""
