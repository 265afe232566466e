const font = "system-ui, sans-serif";
Redoc.init(
  "/openapi.json",
  { theme: { typography: { fontFamily: font, headings: { fontFamily: font } } } },
  document.getElementById("api"),
);
