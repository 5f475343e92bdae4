// Shows the API's description at /docs. Whatever is tried out is sent to this host only: the page's policy sees to that.
"use strict";

(() => {
  const place = document.getElementById("reference");
  SwaggerUIBundle({
    domNode: place,
    url: place.dataset.description,
    deepLinking: true,
    validatorUrl: null,
    syntaxHighlight: { activated: false },
  });
})();
