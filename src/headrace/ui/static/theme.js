// Before anything is drawn: the mode that was chosen, else that of the system.
const chosen = localStorage.getItem("headrace.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
