() => { // For screen readers: announce changes, and name buttons by their text (gradio 6.31).
    for (const block of document.querySelectorAll(".live")) block.setAttribute("aria-live", "polite");
    for (const button of document.querySelectorAll(".upload-container")) button.removeAttribute("aria-label");
}
