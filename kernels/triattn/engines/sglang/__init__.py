"""triattn inside SGLang: hooks of its plugin framework, found by capability."""
