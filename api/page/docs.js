// Shows the OpenAPI document; nothing is asked of another server.
window.SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, docExpansion: "none",
  defaultModelsExpandDepth: -1, // each operation shows its own
});
