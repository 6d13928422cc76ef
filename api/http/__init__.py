"""What HTTP asks of every resource: problems, pages, ranges, middlewares, the OpenAPI document."""
