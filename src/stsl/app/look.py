"""How the page looks: calm, local fonts only, one column on a phone."""

import gradio as gr

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Colours, corners and fonts; nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        block_background_fill="white",
        block_border_color="*neutral_200",
        block_label_text_weight="500",
        block_title_text_weight="500",
        block_shadow="none",
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_large_padding="9px 16px",
        button_large_text_weight="500",
        button_large_text_size="*text_md",
        slider_color="*primary_600",
        checkbox_label_shadow="none",
        checkbox_label_background_fill="*neutral_100",
        checkbox_label_background_fill_selected="*primary_50",
        button_secondary_background_fill="white",
        button_secondary_border_color="*neutral_300",
        button_border_width="1px",
        input_background_fill="*neutral_50",
        input_border_width="1px",
        input_border_color="*neutral_200",
    )


CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .main.fillable { padding: 12px clamp(10px, 2.5vw, 32px) !important; }
#header h1 { font-size: 1.35rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
#header p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 0.92rem; }
#header .facts { display: flex; flex-wrap: wrap; gap: 6px; }
#header .bar { display: flex; flex-wrap: wrap; gap: 10px 24px; align-items: center; justify-content: space-between; }
.fact { font-size: 0.8rem; padding: 3px 10px; border-radius: 999px; border: 1px solid var(--border-color-primary);
        color: var(--body-text-color-subdued); }
.html-container:has(.note, .said, .verdict, .rows), .html-container:has(.prose:empty) { padding: 0 2px !important; }
.note, .said, .verdict { font-size: 0.9rem !important; margin: 0 !important; line-height: 1.45; }
.note.alert { color: #b91c1c; font-weight: 500; }
.dark .note.alert { color: #fca5a5; }
.note { color: var(--body-text-color-subdued); }
.said { margin-bottom: 6px !important; }
.block:has(> .html-container > .prose:empty) { display: none; }
.track { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.track > div { height: 100%; background: var(--slider-color); border-radius: 3px; transition: width .3s ease; }
.track.unknown > div { width: 30%; animation: stsl-slide 1.6s ease-in-out infinite; }
@keyframes stsl-slide { 0% { margin-left: -30%; } 100% { margin-left: 100%; } }
@media (prefers-reduced-motion: reduce) { .track.unknown > div { animation: none; width: 100%; opacity: .4; } }
.verdict { border-left: 3px solid var(--slider-color); padding: 4px 12px; }
.verdict.far { border-left-color: #b45309; }
.verdict strong { font-weight: 600; }
table.rows { width: 100%; border-collapse: collapse; font-size: 0.9rem; border: 0 !important; }
table.rows thead th { font-weight: 500; color: var(--body-text-color-subdued); }
table.rows th, table.rows td { text-align: left; padding: 6px 10px 6px 0; vertical-align: top;
                               border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
table.rows tbody th { font-weight: 600; }
table.rows .number { text-align: right; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 14px; margin-bottom: 18px; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 14px 18px;
        background: var(--block-background-fill); }
.card h3, #about h3 { margin: 0 0 6px; font-size: 1rem; font-weight: 600; }
.card p { margin: 4px 0; font-size: 0.92rem; line-height: 1.5; }
.examples { gap: 8px !important; flex-wrap: nowrap !important; }
.examples button { min-width: 0 !important; flex: 0 1 88px !important; flex-direction: column; gap: 5px;
                   padding: 8px 2px; font-size: 0.8rem; font-weight: 500; background: var(--block-background-fill);
                   border: 1px solid var(--border-color-primary); }
.examples button:hover { border-color: var(--slider-color); }
.examples button img { width: 44px; height: 44px; margin: 0; border-radius: 4px; }
.gallery-container, .grid-wrap { min-height: 0 !important; }
#inpaint-editor .layer-wrap, #inpaint-editor [data-testid="layer-wrap"] { display: none; }
@media (max-width: 640px) {
  .tab-container button { font-size: 0.82rem !important; padding: 0 6px !important; }
  .examples button { flex: 1 1 0 !important; font-size: 0.72rem; }
  .examples button img { width: 36px; height: 36px; }
  .keep-row { flex-wrap: nowrap !important; }
  .keep-row > * { min-width: 0 !important; }
}
footer { opacity: .75; }
"""
